"""One overview over tensor-parallel sizes: which work, what each rank holds, what is shared.

What splits and what cannot is read off the layouts that the blocks declare; the bytes come from the
plans of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from assembler.blocks.parallel import Part
from assembler.weights.finding import Finding
from assembler.weights.fold import fold_names, fold_text, merge_names
from assembler.weights.parameters import ParameterSlot
from assembler.weights.plan import LoadPlan
from assembler.weights.rank_memory import RankMemory, format_bytes, rank_memory
from assembler.weights.report import covered
from assembler.weights.weight_map import WeightMap


@dataclass(frozen=True)
class SizeRow:
    """One size."""

    tp_size: int
    refusals: tuple[str, ...]  # what cannot be split so, and why
    errors: int  # findings that stand in the way
    memory: RankMemory | None  # None where the model cannot be split so
    copies: tuple[str, ...]  # what has too few units for the ranks, so that several hold the same

    @property
    def works(self) -> bool:
        return not self.refusals and not self.errors

    @property
    def weights(self) -> str:
        """The bytes of one rank: `130.0 MB`, `130.0 MB to 139.1 MB`, "" where there is none."""
        if self.memory is None:
            return ""
        least, most = (format_bytes(f(self.memory.nbytes)) for f in (min, max))
        return least if least == most else f"{least} to {most}"

    def to_json(self) -> dict[str, Any]:
        memory = self.memory
        return {
            "tp_size": self.tp_size,
            "works": self.works,
            "refusals": list(self.refusals),
            "errors": self.errors,
            "min_rank_nbytes": None if memory is None else min(memory.nbytes),
            "max_rank_nbytes": None if memory is None else max(memory.nbytes),
            "imbalance": None if memory is None else round(memory.imbalance, 4),
            "uneven": [] if memory is None else list(memory.uneven),
            "copies": list(self.copies),
        }


@dataclass(frozen=True)
class SizesOverview:
    """All sizes of one model and checkpoint."""

    title: str
    rows: tuple[SizeRow, ...]
    splits: tuple[tuple[str, str], ...]  # ("column", the modules split so)
    whole: str  # the modules that every rank holds all of
    whole_nbytes: int  # their bytes on disk
    findings: tuple[Finding, ...]
    covered: str  # "30/30 tensors, 100 % of bytes, 21/21 parameters"

    @property
    def summary(self) -> str:
        """The last line: what is covered, which sizes work and which do not."""
        good = ",".join(str(row.tp_size) for row in self.rows if row.works)
        bad = ",".join(str(row.tp_size) for row in self.rows if not row.works)
        verdicts = [f"works with tp={good}"] * bool(good) + [f"not with tp={bad}"] * bool(bad)
        return f"{self.covered}; {', '.join(verdicts)}"

    @property
    def complete(self) -> bool:
        """Whether every size works."""
        return all(row.works for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The overview as JSON-ready data."""
        return {
            "title": self.title,
            "complete": self.complete,
            "summary": self.summary,
            "sizes": [row.to_json() for row in self.rows],
            "splits": dict(self.splits),
            "whole": self.whole,
            "whole_nbytes": self.whole_nbytes,
            "findings": [asdict(finding) for finding in self.findings],
        }


def sizes_overview(
    whole: LoadPlan,
    ranks_by_size: Mapping[int, Sequence[LoadPlan]],
    refused: Mapping[int, str],
) -> SizesOverview:
    """Compare sizes.

    Args:
        whole: the plan of the model in one piece.
        ranks_by_size: the plans of all ranks of each size that the model can be built for.
        refused: for the other sizes, the reason that ended the attempt.
    """
    rows, findings = [], dict.fromkeys(whole.findings)
    for size in sorted({*ranks_by_size, *refused}):
        plans = ranks_by_size.get(size, ())
        own = dict.fromkeys(finding for plan in plans for finding in plan.findings)
        findings |= own
        rows.append(
            SizeRow(
                tp_size=size,
                refusals=() if plans else _refusals(whole, size) or (refused[size],),
                errors=sum(finding.severity == "error" for finding in own),
                memory=rank_memory(plans) if plans else None,
                copies=_copies(whole, size) if plans else (),
            )
        )
    held = [slot for slot in whole.parameters if slot.layout.dim is None]
    names = {slot.name for slot in held}
    return SizesOverview(
        title=f"{whole.root}: weight map '{whole.map_name}'",
        rows=tuple(rows),
        splits=tuple(_splits(whole)),
        whole=_modules(held, whole),
        whole_nbytes=sum(piece.nbytes for piece in whole.pieces if piece.target in names),
        findings=tuple(findings),
        covered=covered(whole.totals),
    )


def alike_ranks(whole: LoadPlan, weight_map: WeightMap, size: int) -> list[int]:
    """For each rank of `size` the first one that holds as many rows of everything as it does.

    Those have as many bytes and the same findings: one plan does for all of them. Where tensors may
    have spare rows or lack some, each rank is like itself only.
    """
    if any(s.any_rows for rule in weight_map.rules for way in rule.ways for s in way.sources):
        return list(range(size))
    split = [slot for slot in whole.parameters if slot.layout.dim is not None]
    parts = {part: None for slot in split for part in slot.parts if not part.refusal(size)}
    first: dict[tuple[int, ...], int] = {}
    return [
        first.setdefault(tuple(len(part.rank_rows(rank, size)) for part in parts), rank)
        for rank in range(size)
    ]


def _splits(plan: LoadPlan) -> Iterable[tuple[str, str]]:
    by_kind: dict[str, list[ParameterSlot]] = {}
    for slot in plan.parameters:
        if slot.layout.dim is not None:
            by_kind.setdefault(slot.layout.kind, []).append(slot)
    return ((kind, _modules(group, plan)) for kind, group in by_kind.items())


def _modules(slots: Sequence[ParameterSlot], plan: LoadPlan) -> str:
    """Module paths on one line; where another parameter of the module is elsewhere, its name."""
    among = {slot.name for slot in slots}
    mixed = {slot.module for slot in plan.parameters if slot.name not in among}
    names = (slot.name if slot.module in mixed else slot.module for slot in slots)
    return fold_text(dict.fromkeys(names))


def _refusals(plan: LoadPlan, size: int) -> tuple[str, ...]:
    """Every module that cannot be split over `size` ranks, those of all layers as one."""
    reasons: dict[str, dict[str, None]] = {}
    for slot in plan.parameters:
        if slot.layout.dim is not None:
            found = [reason for part in slot.parts if (reason := part.refusal(size))]
            if found:
                reasons.setdefault("; ".join(found), {})[slot.module] = None
    return tuple(f"{_one_line(modules)}: {reason}" for reason, modules in reasons.items())


def _copies(plan: LoadPlan, size: int) -> tuple[str, ...]:
    """What has fewer units than there are ranks, so that several ranks hold the same."""
    held: dict[tuple[str, str], dict[str, None]] = {}
    for slot in plan.parameters:
        if slot.layout.dim is None:
            continue
        parts: dict[str, list[str]] = {}
        for part in slot.parts:
            times = _times_held(part, size)
            if times > 1:
                units = "rows" if part.unit == 1 else f"units of {part.unit} rows"
                fact = f"{part.units} {units}, each held {times} times"
                parts.setdefault(fact, []).append(f"'{part.name}'")
        for fact, names in parts.items():
            held.setdefault((" and ".join(names), fact), {})[slot.module] = None
    return tuple(f"{_one_line(m)}: {names}: {fact}" for (names, fact), m in held.items())


def _times_held(part: Part, size: int) -> int:
    """How many ranks hold the same rows."""
    return size // len({part.rank_rows(rank, size) for rank in range(size)})


def _one_line(modules: Iterable[str]) -> str:
    return merge_names([fold.text for fold in fold_names(modules)])
