"""What may happen to a tensor between the file and its parameter: pure ops with inverses.

A piece of a checkpoint is a chain of ops. Those here change order and shape, never a value. Ops
that are *views* (`is_view`) give a window into the tensor they read; the others rearrange it (or
compute, see `value_ops`) and declare the op that undoes them and what that loses, if anything
(`loss`). `write_back` walks a chain the other way with nothing else, which is what an export does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

RopeOrder = Literal["interleaved_to_half", "half_to_interleaved"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """Base of the ops. `shape` is what `apply` makes of a tensor of that shape."""

    is_view: ClassVar[bool] = True

    def shape(self, shape: Shape) -> Shape:
        raise NotImplementedError

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @property
    def inverse(self) -> Op | None:
        """The op that undoes this one; None for a window, which gives only part of what it read."""
        raise NotImplementedError

    @property
    def loss(self) -> str | None:
        """What `inverse` cannot bring back; None when it restores every bit."""
        return None


@dataclass(frozen=True)
class Transpose(Op):
    """Swap the last two dims, [.., a, b] -> [.., b, a]: `Conv1D` layouts."""

    def shape(self, shape: Shape) -> Shape:
        return (*shape[:-2], shape[-1], shape[-2])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2)

    @property
    def inverse(self) -> Op:
        return self

    def __str__(self) -> str:
        return "transpose"


@dataclass(frozen=True)
class Narrow(Op):
    """Rows `start:stop` of dim `dim`."""

    dim: int
    start: int
    stop: int

    def shape(self, shape: Shape) -> Shape:
        return (*shape[: self.dim], self.stop - self.start, *shape[self.dim + 1 :])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x.narrow(self.dim, self.start, self.stop - self.start)

    @property
    def inverse(self) -> None:
        return None

    def __str__(self) -> str:
        what = ("rows", "columns")[self.dim] if self.dim < 2 else f"dim {self.dim}"
        return f"{what} {self.start}:{self.stop}"


@dataclass(frozen=True)
class Unflatten(Op):
    """Split dim `dim` into `groups` equal blocks, [.., groups * n, ..] -> [.., groups, n, ..]."""

    dim: int
    groups: int

    def shape(self, shape: Shape) -> Shape:
        rows = shape[self.dim] // self.groups
        return (*shape[: self.dim], self.groups, rows, *shape[self.dim + 1 :])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(self.dim, (self.groups, -1))

    @property
    def inverse(self) -> Op:
        return Flatten(self.dim, self.groups)

    def __str__(self) -> str:
        return f"split dim {self.dim} into {self.groups}"


@dataclass(frozen=True)
class Flatten(Op):
    """Join dims `dim` (of size `groups`) and `dim + 1`: the end of an ungrouping."""

    is_view: ClassVar[bool] = False
    dim: int
    groups: int

    def shape(self, shape: Shape) -> Shape:
        joined = math.prod(shape[self.dim : self.dim + 2])
        return (*shape[: self.dim], joined, *shape[self.dim + 2 :])

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(self.dim, self.dim + 1)

    @property
    def inverse(self) -> Op:
        return Unflatten(self.dim, self.groups)

    def __str__(self) -> str:
        return f"join the {self.groups}"


@dataclass(frozen=True)
class RopePermute(Op):
    """Reorder the rows of each head between the two layouts of rotary embeddings.

    Interleaved (the RoFormer paper, Su et al. 2021; llama.cpp's llama) rotates rows (0, 1), (2, 3),
    ...; half (GPT-NeoX, transformers) rotates rows (0, D/2), (1, D/2 + 1), ... With partial rotary
    embeddings only `rotary` rows of a head move, its first or (`at_end`, as in latent attention)
    its last ones.
    """

    is_view: ClassVar[bool] = False
    dim: int
    heads: int
    order: RopeOrder
    rotary: int | None = None  # None: the whole head
    at_end: bool = False

    def shape(self, shape: Shape) -> Shape:
        return shape

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        by_head = x.unflatten(self.dim, (self.heads, -1))
        dim = self.dim + 1
        width = by_head.shape[dim]
        rotary = self.rotary or width
        pairs = (-1, 2) if self.order == "interleaved_to_half" else (2, -1)
        window = (dim, width - rotary if self.at_end else 0, rotary)
        rows = by_head.narrow(*window).unflatten(dim, pairs)
        rows = rows.transpose(dim, dim + 1).flatten(dim, dim + 1)
        if rotary < width:
            whole = by_head.clone()
            whole.narrow(*window).copy_(rows)
            rows = whole
        return rows.flatten(self.dim, dim)

    @property
    def inverse(self) -> Op:
        to_half = self.order == "interleaved_to_half"
        back: RopeOrder = "half_to_interleaved" if to_half else "interleaved_to_half"
        return replace(self, order=back)

    def __str__(self) -> str:
        heads = "1 head" if self.heads == 1 else f"{self.heads} heads"
        where = (
            f", {'last' if self.at_end else 'first'} {self.rotary} rows of" if self.rotary else ","
        )
        return f"rope {self.order.replace('_', ' ')}{where} {heads}"


@dataclass(frozen=True)
class Unsqueeze(Op):
    """Add a leading dim of 1: one tensor of a stack."""

    def shape(self, shape: Shape) -> Shape:
        return (1, *shape)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(0)

    @property
    def inverse(self) -> Op:
        return Squeeze()

    def __str__(self) -> str:
        return "stack"


@dataclass(frozen=True)
class Squeeze(Op):
    """Drop a leading dim of 1."""

    def shape(self, shape: Shape) -> Shape:
        return shape[1:]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(0)

    @property
    def inverse(self) -> Op:
        return Unsqueeze()

    def __str__(self) -> str:
        return "unstack"


def apply_ops(ops: Sequence[Op], x: torch.Tensor) -> torch.Tensor:
    """`x` after the whole chain; a view of `x` where every op is one."""
    for op in ops:
        x = op.apply(x)
    return x


def shape_after(ops: Sequence[Op], shape: Shape) -> Shape:
    """The shape `apply_ops` gives."""
    for op in ops:
        shape = op.shape(shape)
    return shape


def write_back(ops: Sequence[Op], value: torch.Tensor, into: torch.Tensor) -> None:
    """Store `value` in `into` so that `apply_ops(ops, into)` gives it; the rest of `into` stays."""
    if not ops:
        into.copy_(value)
        return
    op, rest = ops[0], ops[1:]
    if op.is_view:
        write_back(rest, value, op.apply(into))
        return
    rearranged = op.apply(into)
    write_back(rest, value, rearranged)
    assert op.inverse is not None, f"{op} is neither a view nor invertible"
    if rearranged.untyped_storage().data_ptr() != into.untyped_storage().data_ptr():
        into.copy_(op.inverse.apply(rearranged))
