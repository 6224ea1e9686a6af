"""A rule applied to one parameter: the names it reads, the shape they must have, the cuts to make.

This is where the map meets the model, before any checkpoint is looked at: parts are assigned to
sources, and for each source the layout on disk is worked out from the layout in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from assembler.blocks.parallel import Part, TensorParallel
from assembler.errors import did_you_mean
from assembler.weights.cuts import (
    Cut,
    Layout,
    Misfit,
    Span,
    Window,
    cut_parts,
    first_ops,
    layout_of,
)
from assembler.weights.map_rules import Rule, Source
from assembler.weights.ops import Shape
from assembler.weights.parameters import ParameterSlot
from assembler.weights.siblings import Siblings

__all__ = ["Cut", "Misfit", "Recipe", "Span", "Way", "make_ways"]


@dataclass(frozen=True)
class Recipe:
    """What one source of a rule contributes to one parameter."""

    slot: ParameterSlot
    rule: Rule
    source: Source
    layout: Layout
    parts: tuple[Part, ...]  # in the order on disk
    pattern: str  # the name on disk without prefix; a stack's own wildcard still in it
    names: tuple[str, ...]  # that name; for a stack one name an index, from 0
    stacked: bool
    local_stack: range  # the indices of a stack that this rank holds
    window: Window | None  # the rows it gets of a tensor that others share
    shape: Shape  # of each tensor on disk; its rows may differ if `source.any_rows`
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Way:
    """One way to fill a parameter: from tensors (`recipes`), or with a constant (`fill`)."""

    slot: ParameterSlot
    rule: Rule
    recipes: tuple[Recipe, ...]

    @property
    def fill(self) -> float | None:
        return self.rule.fill


def make_ways(
    rule: Rule, slot: ParameterSlot, tp: TensorParallel, siblings: Siblings
) -> tuple[Way, ...]:
    """Apply every way of `rule` to `slot`. Raises Misfit if one of them does not fit."""
    return tuple(Way(slot, way, tuple(_make_recipes(way, slot, tp, siblings))) for way in rule.ways)


def _make_recipes(
    rule: Rule, slot: ParameterSlot, tp: TensorParallel, siblings: Siblings
) -> Iterator[Recipe]:
    """One recipe a source."""
    by_module = rule.target.match(slot.name) is None
    path = slot.module if by_module else slot.name
    values = rule.target.match(path)
    assert values is not None, (rule, slot)
    suffix = f".{slot.leaf}" if by_module else ""
    for source, names in _assign_parts(rule, slot):
        free = [name for name in source.pattern.names if name not in values]
        layout = layout_of(slot, tp, stacked=bool(free))
        parts = tuple(p for name in names for p in layout.parts if p.name == name)
        window = siblings.window(source, rule.target, path, slot)
        shape, first = first_ops(source, layout, parts, window)
        if source.any_rows and (layout.dim != 0 or not layout.shape):
            raise Misfit("is not laid out in rows, so none can be sliced off or padded")
        count = slot.layout.shape[0] if free else 1
        filled = [{**values, **dict.fromkeys(free, n)} for n in range(count)]
        yield Recipe(
            slot=slot,
            rule=rule,
            source=source,
            layout=layout,
            parts=parts,
            pattern=source.pattern.fill_known(values) + suffix,
            names=tuple(source.pattern.fill(each) + suffix for each in filled),
            stacked=bool(free),
            local_stack=_local_stack(slot, tp),
            window=window,
            shape=shape,
            cuts=tuple(cut_parts(source, layout, parts, first)),
        )


def _assign_parts(rule: Rule, slot: ParameterSlot) -> Iterator[tuple[Source, tuple[str, ...]]]:
    """Which parts each source holds: those it names, else the next one in the target's order."""
    if not rule.sources:
        return
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


def _local_stack(slot: ParameterSlot, tp: TensorParallel) -> range:
    if slot.layout.dim == 0:
        return slot.local_rows(slot.parts[0], tp)
    return range(slot.layout.shape[0] if slot.layout.shape else 1)
