"""Which of the namings that a map accepts a checkpoint has, and what to say if it has another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from assembler.weights.index import TensorInfo
from assembler.weights.issues import Issue
from assembler.weights.naming import Naming
from assembler.weights.recipes import Recipe, Way
from assembler.weights.weight_map import WeightMap
from assembler.weights.yaml_marks import display_path


def choose_naming(
    namings: Sequence[Naming], recipes: Iterable[Recipe], tensors: Mapping[str, TensorInfo]
) -> tuple[Naming, int]:
    """The naming under which most sources are found (the first such), and how many are."""
    names = [name for recipe in recipes for name in recipe.names]
    best, most = namings[0], -1
    for naming in namings:
        found = sum(naming.on_disk(name) in tensors for name in names)
        if found > most:
            best, most = naming, found
        if found == len(names):
            break
    return best, most


def foreign_prefix(
    weight_map: WeightMap,
    ways: Mapping[str, Sequence[Way]],
    tensors: Mapping[str, TensorInfo],
) -> Iterator[Issue]:
    """When nothing at all is found, see whether the names only stand under another prefix."""
    wanted = [  # for each parameter the names that one of its ways needs
        [[recipe.names[0] for recipe in way.recipes] for way in choices]
        for choices in ways.values()
        if choices[0].slot.tied_to is None
    ]
    first = next((name for choices in wanted for names in choices for name in names), None)
    for tensor in tensors:
        if first is None or not tensor.endswith(f".{first}"):
            continue
        prefix = tensor.removesuffix(first)
        there = (any(all(prefix + n in tensors for n in w) for w in ways) for ways in wanted)
        if all(there):
            file = display_path(weight_map.files[0])
            message = f"every name of the checkpoint stands under '{prefix}'"
            hint = f"Add '{prefix}' to `prefixes` of {file}."
            yield Issue("map", weight_map.name, message, (), file, hint)
            return
