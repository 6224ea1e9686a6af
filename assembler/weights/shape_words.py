"""Why a tensor should have had another shape: the parts and config fields behind the right one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from assembler.weights.ops import Shape
from assembler.weights.recipes import Recipe


def shape_words(recipe: Recipe, found: Shape, config: Mapping[str, Any]) -> tuple[str, str]:
    """(the wanted shape, a hint with the parts and the config fields that it comes from)."""
    wanted = recipe.shape
    sizes = [w for w, f in zip(wanted, found, strict=False) if w != f]
    if len(wanted) != len(found):
        sizes = list(wanted)
    facts = []
    if len(recipe.parts) > 1:
        facts.append(" + ".join(f"{part.name} {part.size}" for part in recipe.parts))
    for part in recipe.parts:
        if part.size in sizes or len(recipe.parts) > 1:
            if 1 < part.unit < part.size:
                facts.append(f"{part.name} = {part.units} × {part.unit}")
                sizes += [part.units, part.unit]
            sizes.append(part.size)
    facts += [f"{name} = {size}" for name, size in _fields(config, sizes)]
    hint = f"It comes from {'; '.join(dict.fromkeys(facts))}." if facts else ""
    if len(found) > 1 and wanted == (*found[:-2], found[-1], found[-2]):
        hint = f"Rows and columns are exchanged: see `transpose` of its rule. {hint}"
    return str(list(wanted)), hint


def _fields(config: Mapping[str, Any], sizes: list[int]) -> Iterator[tuple[str, int]]:
    """The config fields that have one of the sizes: where a wrong one probably comes from."""
    nested = [value for value in config.values() if isinstance(value, Mapping)]
    for mapping in (config, *nested):
        for name, value in mapping.items():
            counts = isinstance(value, int) and not isinstance(value, bool) and value > 1
            if counts and value in sizes and not name.endswith("_token_id"):
                yield name, value
