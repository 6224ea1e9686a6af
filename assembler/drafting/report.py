"""What a draft came to, as data and as the lines a terminal shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_MOST_SHOWN = 12


@dataclass(frozen=True)
class DraftReport:
    """The files that were written, and what is known and not known about them."""

    name: str
    parent: str  # the architecture that the draft extends
    likeness: float  # of the parent, from 0 to 1
    near: bool  # False: nothing shipped is much like this checkpoint
    conf: Path
    weight_map: Path
    checkpoint: str
    tensors: tuple[int, int]  # covered, of all
    parameters: tuple[int, int]  # filled, of all
    findings: tuple[str, ...]  # what is left to do before it loads
    guesses: tuple[tuple[str, str], ...]  # (where, why)
    unplaced: tuple[str, ...]  # fields of config.json that nothing reads
    unknown: tuple[str, ...]  # tensors that no word of the vocabulary fits
    matched_by: str | None  # file:line of a conf for these checkpoints: the draft has no `matches`

    @property
    def complete(self) -> bool:
        """Whether the checkpoint is covered: all tensors used, all parameters filled."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        data = asdict(self)
        data |= {"conf": str(self.conf), "weight_map": str(self.weight_map)}
        return {**data, "complete": self.complete}


def report_lines(report: DraftReport) -> Iterator[str]:
    """The report for a terminal."""
    yield f"wrote {report.conf} and {report.weight_map}"
    if report.near:
        yield f"from {report.parent}, the nearest architecture ({report.likeness:.0%} alike)"
    else:
        yield (
            f"nothing that ships is near; {report.parent} is the nearest ({report.likeness:.0%} "
            "alike): expect to rewrite much of it"
        )
    if report.matched_by:
        yield (
            f"{report.matched_by} is for these checkpoints already: the draft has no `matches` "
            f"(they stand in it as a comment); pass conf={report.name}"
        )
    done, all_ = report.tensors
    filled, parameters = report.parameters
    yield f"coverage: {done}/{all_} tensors, {filled}/{parameters} parameters"
    yield from _some("left to do", report.findings)
    yield from _some("guessed (marked in the files)", [f"{w}: {y}" for w, y in report.guesses])
    yield from _some("fields of config.json that nothing reads", report.unplaced)
    yield from _some("tensors of unknown use", report.unknown)
    command = "verify" if report.complete else "coverage"
    root = report.conf.parent.parent
    search = "" if root.resolve() == Path.cwd() else f" hydra.searchpath=[{root}]"
    what = f"conf={report.name} checkpoint={report.checkpoint}"
    yield f"next: python -m assembler.{command} {what}{search}"


def _some(title: str, items) -> Iterator[str]:
    if items:
        yield f"{title}: {len(items)}"
        yield from (f"  {item}" for item in items[:_MOST_SHOWN])
        if len(items) > _MOST_SHOWN:
            yield f"  and {len(items) - _MOST_SHOWN} more"
