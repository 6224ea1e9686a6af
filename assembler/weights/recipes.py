"""A rule applied to one parameter: the names it reads, the shape they must have, the cuts to make.

This is where the map meets the model, before any checkpoint is looked at: parts are assigned to
sources, layouts on disk are worked out from layouts in memory, and this rank's share is cut out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from assembler.blocks.parallel import Part, TensorParallel
from assembler.errors import did_you_mean
from assembler.weights.map_rules import Rule, Source
from assembler.weights.ops import Flatten, Narrow, Op, RopePermute, Shape, Transpose, Unflatten
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
class Recipe:
    """What one source of a rule contributes to one parameter."""

    slot: ParameterSlot
    rule: Rule
    parts: tuple[Part, ...]  # in the order on disk
    pattern: str  # the name on disk without prefix; a stack's own wildcard still in it
    names: tuple[str, ...]  # that name; for a stack one name an index, from 0
    stacked: bool
    local_stack: range  # the indices of a stack that this rank holds
    shape: Shape  # of each tensor on disk
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class _Layout:
    """The parameter as one source tensor sees it: without the dim that a stack adds."""

    shape: Shape
    dim: int
    parts: tuple[Part, ...]
    rows: tuple[range, ...]  # this rank's rows of each part


def make_recipes(rule: Rule, slot: ParameterSlot, tp: TensorParallel) -> list[Recipe]:
    """Apply `rule` to `slot`, one recipe a source. Raises Misfit."""
    by_module = rule.target.match(slot.name) is None
    values = rule.target.match(slot.module if by_module else slot.name)
    assert values is not None, (rule, slot)
    recipes = []
    for source, names in _assign_parts(rule, slot):
        free = [name for name in source.pattern.names if name not in values]
        layout = _layout(slot, tp, stacked=bool(free))
        parts = tuple(p for name in names for p in layout.parts if p.name == name)
        suffix = f".{slot.leaf}" if by_module else ""
        count = slot.layout.shape[0] if free else 1
        filled = [{**values, **dict.fromkeys(free, n)} for n in range(count)]
        recipes.append(
            Recipe(
                slot=slot,
                rule=rule,
                parts=parts,
                pattern=source.pattern.fill_known(values) + suffix,
                names=tuple(source.pattern.fill(each) + suffix for each in filled),
                stacked=bool(free),
                local_stack=_local_stack(slot, tp),
                shape=_disk_shape(source, layout, parts),
                cuts=tuple(_cuts(source, layout, parts)),
            )
        )
    return recipes


def _assign_parts(rule: Rule, slot: ParameterSlot) -> Iterator[tuple[Source, tuple[str, ...]]]:
    """Which parts each source holds: those it names, else the next one in the target's order."""
    parts = [part.name for part in slot.parts]
    fused = len(parts) > 1
    named = [name for source in rule.sources for name in source.parts]
    for name in named:
        if not fused:
            raise Misfit(f"is not fused, so its source cannot be split into parts {named}")
        if name not in parts:
            hint = did_you_mean(name, parts)
            raise Misfit(f"has the parts {', '.join(parts)}, and no '{name}'.{hint}")
        if named.count(name) > 1:
            raise Misfit(f"would get its part '{name}' twice")
    if fused and len(rule.sources) == 1 and not named:
        order = ", ".join(parts)
        raise Misfit(
            f"fuses {order}, and its rule names one source: add `parts: [{order}]` in the order "
            "in which that tensor holds them, or list one source a part"
        )
    rest = [name for name in parts if name not in named]
    unnamed = [source for source in rule.sources if not source.parts]
    if len(rest) != len(unnamed):
        what = f"fuses {', '.join(parts)}" if fused else "is not fused"
        raise Misfit(f"{what}, and its rule names {len(rule.sources)} sources")
    following = iter(rest)
    for source in rule.sources:
        yield source, source.parts or (next(following),)


def _layout(slot: ParameterSlot, tp: TensorParallel, stacked: bool) -> _Layout:
    shape, split = slot.layout.shape, slot.layout.dim
    if not stacked:
        rows = tuple(slot.local_rows(part, tp) for part in slot.parts)
        return _Layout(shape, slot.dim, slot.parts, rows)
    if len(shape) < 2:
        raise Misfit(f"has the shape {list(shape)}, which is no stack of tensors")
    if split is None or split == 0:  # each tensor is whole; ranks may share out the stack itself
        name = slot.parts[0].name
        whole = Part(name, shape[1], unit=shape[1])
        return _Layout(shape[1:], 0, (whole,), (range(shape[1]),))
    rows = tuple(slot.local_rows(part, tp) for part in slot.parts)
    return _Layout(shape[1:], split - 1, slot.parts, rows)


def _local_stack(slot: ParameterSlot, tp: TensorParallel) -> range:
    if slot.layout.dim == 0:
        return slot.local_rows(slot.parts[0], tp)
    return range(slot.layout.shape[0] if slot.layout.shape else 1)


def _disk_shape(source: Source, layout: _Layout, parts: tuple[Part, ...]) -> Shape:
    shape = list(layout.shape)
    if shape:  # a lone number has no dim to cut
        shape[layout.dim] = sum(part.size for part in parts)
    if source.transpose and len(shape) > 1:
        return Transpose().shape(tuple(shape))
    return tuple(shape)


def _cuts(source: Source, layout: _Layout, parts: tuple[Part, ...]) -> Iterator[Cut]:
    """For each part on disk: transpose, take the part and this rank's rows of it, reorder them."""
    dim = layout.dim
    first: tuple[Op, ...] = (Transpose(),) if source.transpose and len(layout.shape) > 1 else ()
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
        if source.rope:
            heads = _rope_heads(part, len(rows))
            ops.append(RopePermute(dim, heads, source.rope))
        offset += part.size
        name = part.name if len(layout.parts) > 1 else ""
        yield Cut(name, tuple(ops), _span(layout, part))


def _span(layout: _Layout, part: Part) -> Span | None:
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
    if source.per == "head" and len(set(units.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in units.items())
        raise Misfit(
            f"`per: head` needs as many heads in every part, not {listed}; "
            "grouped queries are `per: kv_head`"
        )
    groups = source.per if isinstance(source.per, int) else min(units.values())
    for part in parts:
        if part.size % groups:
            raise Misfit(f"its part '{part.name}' of {part.size} rows has no {groups} equal blocks")
    return groups


def _rope_heads(part: Part, rows: int) -> int:
    if part.unit < 2 or part.unit % 2 or rows % part.unit:
        raise Misfit(f"`rope` reorders heads of an even width, and '{part.name}' has none")
    return rows // part.unit
