"""The tensor-parallel group a block is built for, and how it says which slices are its own.

Sharding follows Megatron-LM (Shoeybi et al., 2019): column-parallel weights split their rows (the
output features, dim 0 of a torch `Linear`), row-parallel weights their columns, and the vocabulary
is split like a column. A group of size 1 is the ordinary single-process model.

What the ranks cannot share evenly they share unevenly, in whole units: a rank may hold a head more
than another. No weight is padded; only what is gathered is, on its way between the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch.nn import functional as F

from assembler.errors import SpecError

ShardKind = Literal["column", "row", "vocab", "replicated"]


@dataclass(frozen=True)
class TensorParallel:
    """One rank's view of its tensor-parallel group."""

    rank: int = 0
    size: int = 1
    group: Any = None  # torch.distributed.ProcessGroup; None while size is 1 or nothing runs

    def leave(self) -> None:
        """Let go of the group, which no block may use any more.

        A group's threads end with its last reference. One that lives until the interpreter ends
        is taken apart while its threads still want the interpreter, which aborts the process.
        """
        object.__setattr__(self, "group", None)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum `x` over the ranks, in place. On the meta device nothing is exchanged."""
        if self.size > 1 and not x.is_meta:
            torch.distributed.all_reduce(x, group=self.group)
        return x

    def all_gather(self, x: torch.Tensor, part: Part) -> torch.Tensor:
        """Put `x` [..., this rank's rows of `part`] of all ranks together -> [..., part.size].

        Shares that differ in width are padded to the widest for the exchange.
        """
        if self.size == 1:
            return x
        widths = [len(part.rank_rows(rank, self.size)) for rank in range(self.size)]
        mine = F.pad(x, (0, max(widths) - x.shape[-1])).contiguous()
        pieces = [torch.empty_like(mine) for _ in widths]
        if not x.is_meta:
            torch.distributed.all_gather(pieces, mine, group=self.group)
        kept = [piece[..., :width] for piece, width in zip(pieces, widths, strict=True)]
        return torch.cat(kept, dim=-1)

    def mean(self, x: torch.Tensor, part: Part) -> torch.Tensor:
        """Mean of `x` [..., this rank's rows of `part`] over the rows of all ranks -> [..., 1]."""
        # A replicated row is summed as often as it is held, so it is counted as often.
        held = sum(len(part.rank_rows(rank, self.size)) for rank in range(self.size))
        return self.all_reduce(x.sum(dim=-1, keepdim=True)) / held

    def local_rows(self, parts: tuple[Part, ...], path: str) -> tuple[range, ...]:
        """The rows of each part that this rank holds.

        Raises `SpecError`, naming the module at `path`, when a part cannot be shared.
        """
        refusals = [reason for part in parts if (reason := part.refusal(self.size))]
        if refusals:
            raise SpecError(f"{path or 'linear'}: {'; '.join(refusals)}; choose another tp size")
        return tuple(part.rank_rows(self.rank, self.size) for part in parts)


@dataclass(frozen=True)
class Part:
    """One named segment of a fused dimension, e.g. the q rows of a fused qkv weight.

    `size` counts rows of the whole model, not of one rank. Rows are dealt out in units of `unit`
    (head_dim for heads) so that a head never straddles two ranks, as evenly as whole units allow.
    `bundle` units stay together while there are bundles for all ranks (the query heads that read
    one key/value head). With `replicate`, several ranks may hold the same unit (key/value heads
    when there are more ranks than heads).
    """

    name: str
    size: int
    unit: int = 1
    replicate: bool = False
    bundle: int = 1

    @property
    def units(self) -> int:
        return self.size // self.unit

    @property
    def bundles(self) -> int:
        return self.units // self.bundle

    def whole_units(self) -> Part:
        """The units themselves as rows, e.g. one a head: shared as this part is."""
        return replace(self, size=self.units, unit=1)

    def refusal(self, tp_size: int) -> str | None:
        """Why this part cannot be split over `tp_size` ranks, or None if it can."""
        if tp_size <= self.bundles:
            return None
        noun = "rows" if self.unit == 1 else f"units of {self.unit} rows"
        has = f"'{self.name}' has {self.units} {noun}"
        if not self.replicate and tp_size > self.units:
            return f"{has}, too few for {tp_size} ranks"
        if tp_size % self.bundles == 0:
            return None
        if self.replicate:
            return f"{has}, which {tp_size} ranks, no multiple of {self.units}, cannot share"
        return f"{has} in {self.bundles} groups, which {tp_size} ranks cannot share"

    def rank_rows(self, rank: int, tp_size: int) -> range:
        """The rows of the whole part that `rank` holds (a contiguous range)."""
        assert self.refusal(tp_size) is None, self.refusal(tp_size)
        if self.replicate and tp_size > self.units:
            first = rank * self.units // tp_size * self.unit
            return range(first, first + self.unit)
        together = self.bundle if tp_size <= self.bundles else 1
        dealt, rows = self.units // together, self.unit * together
        return range(rank * dealt // tp_size * rows, (rank + 1) * dealt // tp_size * rows)


@dataclass(frozen=True)
class ShardDim:
    """How one parameter is laid out over the group: the block's half of the sharding truth.

    `shape` is the shape over the whole group. `dim` is the dimension that is split (None when every
    rank holds all of it). `parts` are the named segments along `dim` (the first one when it is
    None) in storage order; their sizes add up to its size. An unfused, split dimension has one
    part.
    """

    kind: ShardKind
    shape: tuple[int, ...]
    dim: int | None = None
    parts: tuple[Part, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.dim is not None or self.parts:
            size = self.shape[self.dim or 0]
            assert sum(p.size for p in self.parts) == size, (self.parts, self.shape)
