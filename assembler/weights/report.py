"""The coverage report: what fills what, folded over layers, as data and as JSON.

`report_table` draws it. It reads a `LoadPlan` and nothing else: what it shows is what loading does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from assembler.weights.finding import Finding
from assembler.weights.fold import blank_indices, fold_names, fold_text, merge_names
from assembler.weights.ops import Unsqueeze
from assembler.weights.parameters import ParameterSlot
from assembler.weights.plan import LoadPlan, Piece, Totals
from assembler.weights.rank_memory import RankMemory, format_bytes


@dataclass(frozen=True)
class Row:
    """Parameters that differ in their layer only, and the tensors that fill them."""

    target: str
    sources: str
    count: int  # parameters in the row
    shape: tuple[int, ...]  # of each, over the whole model
    dtype: str  # on disk
    nbytes: int  # on disk, that this rank reads
    split: str  # "column", "row", "vocab" or "" for whole
    ops: tuple[str, ...]  # what happens on the way


@dataclass(frozen=True)
class CoverageReport:
    """The report as data."""

    title: str
    rows: tuple[Row, ...]
    ties: tuple[str, ...]
    ignored: tuple[tuple[str, str, int], ...]  # (tensors, reason, bytes on disk)
    findings: tuple[Finding, ...]
    totals: Totals
    tp_size: int
    memory: RankMemory | None = None  # of all ranks, where there are several
    writes_back: tuple[str, ...] | None = None  # what an export cannot restore; None: not known

    @property
    def complete(self) -> bool:
        """True when nothing stands in the way of loading."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def summary(self) -> str:
        """What is covered, and the number of errors."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        return f"{self.covered}: {errors} finding{'s' * (errors > 1)}" if errors else self.covered

    @property
    def covered(self) -> str:
        """`272/272 tensors, 100 % of bytes, 182/182 parameters`."""
        return covered(self.totals)

    @property
    def memory_lines(self) -> list[str]:
        """The weights of each rank, and an imbalance by name."""
        if self.memory is None:
            return []
        each = [format_bytes(nbytes) for nbytes in self.memory.nbytes]
        alike = len(set(each)) == 1
        shown = f"each: {each[0]}" if alike else f"in turn: {', '.join(each)}"
        lines = [f"weights of {self.tp_size} ranks, {shown}"]
        return [*lines, f"imbalance: {self.memory.warning}"] if self.memory.warning else lines

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data, with the same content as the table."""
        return {
            "title": self.title,
            "complete": self.complete,
            "summary": self.summary,
            "totals": asdict(self.totals),
            "tp_size": self.tp_size,
            "rank_nbytes": None if self.memory is None else list(self.memory.nbytes),
            "imbalance": None if self.memory is None else round(self.memory.imbalance, 4),
            "rows": [asdict(row) for row in self.rows],
            "ties": list(self.ties),
            "ignored": [
                {"tensors": names, "reason": reason, "nbytes": nbytes}
                for names, reason, nbytes in self.ignored
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "writes_back": None if self.writes_back is None else list(self.writes_back),
        }


def coverage_report(plan: LoadPlan) -> CoverageReport:
    """Fold a plan into the report's rows."""
    by_target: dict[str, list[Piece]] = {slot.name: [] for slot in plan.parameters}
    for piece in plan.pieces:
        by_target[piece.target].append(piece)
    notes = _notes(plan)
    groups: dict[tuple, list[ParameterSlot]] = {}
    for slot in plan.parameters:
        if by_target[slot.name] or slot.name in notes:
            alike = (*_likeness(slot, by_target[slot.name]), notes.get(slot.name))
            groups.setdefault(alike, []).append(slot)
    rows = [row for slots in groups.values() for row in _rows(slots, by_target, notes)]
    order = {slot.name: n for n, slot in enumerate(plan.parameters)}
    rows.sort(key=lambda item: order[item[0]])
    map_name = f"weight map '{plan.map_name}'"
    prefix = f", prefix '{plan.prefix}'" if plan.prefix else ""
    rank = f", rank {plan.rank} of {plan.size}" if plan.size > 1 else ""
    return CoverageReport(
        title=f"{plan.root}: {map_name}{prefix}{rank}",
        rows=tuple(row for _, row in rows),
        ties=_ties(plan),
        ignored=_ignored(plan),
        findings=plan.findings,
        totals=plan.totals,
        tp_size=plan.size,
    )


def covered(totals: Totals) -> str:
    """How much of both sides a plan covers, in words."""
    return (
        f"{totals.tensors_covered}/{totals.tensors} tensors, "
        f"{_percent(totals.nbytes_covered, totals.nbytes)} of bytes, "
        f"{totals.parameters_filled}/{totals.parameters} parameters"
    )


def _notes(plan: LoadPlan) -> dict[str, tuple[str, ...]]:
    """What the pieces of a parameter do not tell: its constants and the type it keeps."""
    notes: dict[str, tuple[str, ...]] = {}
    for constant in plan.constants:
        place = "".join(f"rows {s.start}:{s.stop} " for s in constant.target_slice)
        line = f"{place}= {constant.value:g}"
        notes[constant.target] = (*notes.get(constant.target, ()), line)
    for name, dtype in plan.dtypes.items():
        notes[name] = (*notes.get(name, ()), f"kept in {dtype}")
    return notes


def _likeness(slot: ParameterSlot, pieces: Iterable[Piece]) -> tuple:
    """Equal for parameters that share a row: all but the indices in their names is the same."""
    sources = dict.fromkeys((blank_indices(p.source)[0], p.info.dtype, p.ops) for p in pieces)
    layout = (slot.layout.kind, slot.layout.shape)
    return blank_indices(slot.name)[0], layout, frozenset(sources)


def _rows(
    slots: list[ParameterSlot],
    by_target: Mapping[str, list[Piece]],
    notes: Mapping[str, tuple[str, ...]],
) -> Iterable[tuple[str, Row]]:
    """(first parameter, row) for parameters alike; several where their indices are no range."""
    layouts = {slot.name: slot for slot in slots}
    for fold in fold_names(layouts):
        first = layouts[fold.names[0]]
        pieces = [piece for name in fold.names for piece in by_target[name]]
        forms: dict[tuple, tuple[int, list[str]]] = {}
        for piece in pieces:
            form = blank_indices(piece.source)[0]
            forms.setdefault(form, (_place(piece), []))[1].append(piece.source)
        texts = [fold_text(names) for _, names in sorted(forms.values(), key=lambda item: item[0])]
        row = Row(
            target=_without_leaf(fold.text),
            sources=_without_leaf(merge_names(texts)) if texts else "",
            count=len(fold.names),
            shape=first.layout.shape,
            dtype="/".join(sorted({piece.info.dtype for piece in pieces})),
            nbytes=sum(piece.nbytes for piece in pieces),
            split="" if first.layout.kind == "replicated" else first.layout.kind,
            ops=(*_op_lines(by_target[first.name]), *notes.get(first.name, ())),
        )
        yield first.name, row


def _op_lines(pieces: Iterable[Piece]) -> tuple[str, ...]:
    """What happens to the pieces of one parameter, a line for each part it happens to."""
    lines = []
    for piece in sorted(pieces, key=_place):
        ops = [op for op in piece.ops if not isinstance(op, Unsqueeze)]  # the indices show it
        if ops:
            chain = " → ".join(str(op) for op in ops)
            lines.append(f"{piece.part}: {chain}" if piece.part else chain)
    return tuple(dict.fromkeys(lines))


def _place(piece: Piece) -> int:
    """Where a piece begins along the fused dimension."""
    return piece.target_slice[-1].start if piece.target_slice else 0


def _without_leaf(name: str) -> str:
    """Most rows end in `.weight` on both sides: it is left out, every other leaf is shown."""
    return name.removesuffix(".weight")


def _ties(plan: LoadPlan) -> tuple[str, ...]:
    """What shares memory; a tensor that is on disk all the same is equal or refused, but later."""
    checks = {check.target: f" (loading compares {check.source})" for check in plan.ties}
    return tuple(
        f"{slot.name} = {slot.tied_to}{checks.get(slot.name, '')}"
        for slot in plan.parameters
        if slot.tied_to
    )


def _ignored(plan: LoadPlan) -> tuple[tuple[str, str, int], ...]:
    """One entry a reason."""
    by_reason: dict[str, dict[str, int]] = {}
    for item in plan.ignored:
        by_reason.setdefault(item.reason, {})[item.info.name] = item.info.nbytes
    return tuple(
        (merge_names([fold.text for fold in fold_names(sizes)]), reason, sum(sizes.values()))
        for reason, sizes in by_reason.items()
    )


def _percent(part: int, whole: int) -> str:
    """Rounded so that only everything is 100 %."""
    share = 100.0 if part == whole else min(100 * part / whole, 99.9)
    return f"{share:.0f} %" if share in (0, 100) else f"{share:.1f} %"
