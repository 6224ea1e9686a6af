"""Layouts on disk worked out from layouts in memory: shapes, and the ops that cut parts out.

Nothing here knows names or files. A `Layout` is the parameter as one tensor on disk sees it; from
it and the options of a source come the shape that the tensor must have and, for each part that it
holds, the ops that bring out this rank's share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from assembler.blocks.parallel import Part, TensorParallel
from assembler.weights.map_options import RopeOption
from assembler.weights.map_rules import Source
from assembler.weights.ops import (
    Flatten,
    Narrow,
    Op,
    RopePermute,
    Shape,
    Squeeze,
    Transpose,
    Unflatten,
)
from assembler.weights.parameters import ParameterSlot


class Misfit(Exception):
    """A rule does not fit the parameter it is for; becomes a finding of kind "map"."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start:stop` of dim `dim` of a parameter."""

    dim: int
    start: int
    stop: int


@dataclass(frozen=True)
class Cut:
    """One part of a source: the ops that bring it out, and where it goes."""

    part: str  # its name, "" where nothing is fused
    ops: tuple[Op, ...]
    span: Span | None  # None: it fills its dimension


@dataclass(frozen=True)
class Window:
    """The share of a tensor that several parameters have in common: rows of its dim 0."""

    start: int
    stop: int
    total: int


@dataclass(frozen=True)
class Layout:
    """The parameter as one source tensor sees it: without the dim that a stack adds."""

    shape: Shape
    dim: int
    parts: tuple[Part, ...]
    rows: tuple[range, ...]  # this rank's rows of each part


def layout_of(slot: ParameterSlot, tp: TensorParallel, stacked: bool) -> Layout:
    """The layout that each source of `slot` sees. Raises Misfit for a stack into a vector."""
    shape, split = slot.layout.shape, slot.layout.dim
    if not stacked:
        rows = tuple(slot.local_rows(part, tp) for part in slot.parts)
        return Layout(shape, slot.dim, slot.parts, rows)
    if len(shape) < 2:
        raise Misfit(f"has the shape {list(shape)}, which is no stack of tensors")
    if split is None or split == 0:  # each tensor is whole; ranks may share out the stack itself
        name = slot.parts[0].name
        whole = Part(name, shape[1], unit=shape[1])
        return Layout(shape[1:], 0, (whole,), (range(shape[1]),))
    rows = tuple(slot.local_rows(part, tp) for part in slot.parts)
    return Layout(shape[1:], split - 1, slot.parts, rows)


def first_ops(
    source: Source, layout: Layout, parts: tuple[Part, ...], window: Window | None
) -> tuple[Shape, tuple[Op, ...]]:
    """(the shape of the tensor on disk, the ops that turn it into the parts side by side)."""
    shape = list(layout.shape)
    if shape:  # a lone number has no dim to cut
        shape[layout.dim] = sum(part.size for part in parts)
    ops: list[Op] = []
    if source.split and window is not None:
        if not shape:
            raise Misfit("is one number, of which no other target can have a share")
        ops.append(Narrow(0, window.start, window.stop))
        shape[0] = window.total
    disk = tuple(shape)
    if source.rearrange is not None:
        try:
            rearrange = source.rearrange.op(disk)
        except ValueError as problem:
            raise Misfit(str(problem)) from None
        ops.insert(0, rearrange)
        disk = rearrange.disk_shape
    elif source.transpose and len(disk) > 1:
        ops.insert(0, Transpose())
        disk = Transpose().shape(disk)
    if source.unstack is not None and window is not None:
        ops[:0] = [Narrow(0, window.start, window.stop), Squeeze()]
        disk = (window.total, *disk)
    return disk, tuple(ops)


def cut_parts(
    source: Source, layout: Layout, parts: tuple[Part, ...], first: tuple[Op, ...]
) -> Iterator[Cut]:
    """For each part on disk: take it and this rank's rows of it, reorder, compute."""
    dim = layout.dim
    groups = _groups(source, parts)
    total = sum(part.size for part in parts)
    offset = 0
    for part in parts:
        ops, rows = list(first), layout.rows[layout.parts.index(part)]
        if groups > 1:
            ops += [
                Unflatten(dim, groups),
                Narrow(dim + 1, offset // groups, (offset + part.size) // groups),
                Flatten(dim, groups),
            ]
            if len(rows) < part.size:
                ops.append(Narrow(dim, rows.start, rows.stop))
        elif len(rows) < total:
            ops.append(Narrow(dim, offset + rows.start, offset + rows.stop))
        if source.rope and (not source.rope.parts or part.name in source.rope.parts):
            ops.append(_rope(source.rope, dim, part, len(rows)))
        offset += part.size
        name = part.name if len(layout.parts) > 1 else ""
        yield Cut(name, (*ops, *source.values), _span(layout, part))


def cut_rows(
    source: Source, layout: Layout, part: Part, disk_rows: int
) -> tuple[Cut | None, Span | None]:
    """Rows that are sliced or padded: (what the tensor gives, what is left to the pad value).

    Raises Misfit when the tensor, with `disk_rows` rows, cannot give what is wanted.
    """
    start = source.slice or 0
    there = disk_rows - start
    if source.slice is None and there > part.size:
        raise Misfit(f"at most {part.size}")
    if source.pad is None and there < part.size:
        raise Misfit(f"at least {start + part.size}")
    at = layout.parts.index(part)
    rows, base = layout.rows[at], sum(len(rows) for rows in layout.rows[:at])
    read = max(0, min(rows.stop, there) - rows.start)
    name = part.name if len(layout.parts) > 1 else ""
    cut = padded = None
    if read:
        first = (Transpose(),) if source.transpose and len(layout.shape) > 1 else ()
        window = Narrow(0, start + rows.start, start + rows.start + read)
        ops = first if window.stop - window.start == disk_rows else (*first, window)
        span = None if read == sum(map(len, layout.rows)) else Span(0, base, base + read)
        cut = Cut(name, (*ops, *source.values), span)
    if read < len(rows):
        padded = Span(0, base + read, base + len(rows))
    return cut, padded


def _span(layout: Layout, part: Part) -> Span | None:
    """Where the part lies in this rank's parameter."""
    if len(layout.parts) == 1:
        return None
    at = layout.parts.index(part)
    start = sum(len(rows) for rows in layout.rows[:at])
    return Span(layout.dim, start, start + len(layout.rows[at]))


def _groups(source: Source, parts: tuple[Part, ...]) -> int:
    """The number of blocks in which the parts repeat on disk; 1 if each lies in one piece."""
    if source.per is None or len(parts) < 2:
        return 1
    units = {part.name: part.units for part in parts}
    sizes = {part.name: part.size for part in parts}
    counts = sizes if source.per == "row" else units
    if source.per in ("head", "row") and len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        hint = "grouped queries are `per: kv_head`" if source.per == "head" else "rows alternate"
        raise Misfit(
            f"`per: {source.per}` needs as many {source.per}s in every part, not {listed}; {hint}"
        )
    groups = source.per if isinstance(source.per, int) else min(counts.values())
    for part in parts:
        if part.size % groups:
            raise Misfit(f"its part '{part.name}' of {part.size} rows has no {groups} equal blocks")
    return groups


def _rope(rope: RopeOption, dim: int, part: Part, rows: int) -> RopePermute:
    """The permutation of this rank's `rows` of a part. Raises Misfit if its heads have no pairs."""
    width = part.unit if rope.heads is None else part.size // rope.heads
    if rope.heads is not None and part.size % rope.heads:
        raise Misfit(f"`rope` has {rope.heads} heads, which do not share {part.size} rows evenly")
    if width < 2 or width % 2 or rows % width:
        raise Misfit(f"`rope` reorders heads of an even width, and '{part.name}' has none")
    rotary = width * rope.partial if rope.dims is None else rope.dims
    if rotary % 2 or rotary > width:
        raise Misfit(f"`rope` cannot rotate {rotary:g} rows of heads that have {width}")
    partial = None if rotary == width else int(rotary)
    return RopePermute(dim, rows // width, rope.order, partial, rope.at_end and partial is not None)
