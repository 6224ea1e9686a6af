"""What each tensor-parallel rank holds, and why one holds more than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from assembler.weights.plan import LoadPlan

NOTABLE = 1.02  # times the mean: less is nobody's concern


@dataclass(frozen=True)
class RankMemory:
    """Bytes of weights by rank, as stored on disk, and what the ranks share unevenly."""

    nbytes: tuple[int, ...]
    uneven: tuple[str, ...]  # e.g. "q: 192 to 384 rows"

    @property
    def imbalance(self) -> float:
        """The fullest rank in terms of the mean: 1 when all hold the same."""
        mean = sum(self.nbytes) / len(self.nbytes)
        return max(self.nbytes) / mean if mean else 1.0

    @property
    def warning(self) -> str:
        """Which rank holds more than the others and why; "" where none notably does."""
        if self.imbalance < NOTABLE:
            return ""
        fullest = self.nbytes.index(max(self.nbytes))
        return f"rank {fullest} holds {self.imbalance:.2f} × the mean ({'; '.join(self.uneven)})"


def format_bytes(count: float) -> str:
    """`87.4 MB`; units of 1000, as disks and hubs count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def rank_memory(plans: Sequence[LoadPlan]) -> RankMemory:
    """Measure the plans of all ranks of one size, in order."""
    size = plans[0].size
    uneven: dict[str, str] = {}
    for slot in plans[0].parameters:
        for part in slot.layout.parts:
            rows = [len(part.rank_rows(rank, size)) for rank in range(size)]
            if min(rows) < max(rows):
                uneven.setdefault(part.name, f"{part.name}: {min(rows)} to {max(rows)} rows")
    nbytes = tuple(sum(piece.nbytes for piece in plan.pieces) for plan in plans)
    return RankMemory(nbytes, tuple(uneven.values()))
