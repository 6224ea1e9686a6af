"""Likely causes of a block's difference: changes with which it computes what the reference does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assembler.model.registry import BlockSpec
from assembler.verifying.field_changes import Sizes, field_changes
from assembler.verifying.report import Cause
from assembler.verifying.trials import Bench, Weights
from assembler.verifying.weight_changes import weight_changes
from assembler.weights.parameters import ParameterSlot
from assembler.weights.weight_map import WeightMap
from assembler.weights.write_back import RuleLookup

_MOST_SHOWN = 4
# Changes on top of which a second one is looked for, those that help most: of a block as small as a
# tiny model's all that are worth it, of a real one's few.
_SMALL_BLOCK, _BASES_IF_SMALL, _BASES = 1_000_000, 40, 5


@dataclass(frozen=True)
class Clues:
    """What changes are taken from, and what their places are called."""

    config: Mapping[str, Any]
    hidden_size: int
    slots: Mapping[str, ParameterSlot]  # of the whole model
    weight_map: WeightMap
    where: str  # file:line of the block in the YAML


@dataclass(frozen=True)
class _Tried:
    cause: Cause
    entry: BlockSpec
    weights: Weights


def find_causes(
    bench: Bench, clues: Clues, error: float, tolerance: float
) -> tuple[tuple[Cause, ...], int]:
    """The changes that bring a block within `tolerance`, and how many were tried.

    One change is looked for first; where none suffices, a second is looked for on top of those that
    help most. The causes are then those two together.

    Args:
        error: of the block as it is.
    """
    wanted = min(tolerance, error / 10)
    tried = list(_changed(bench, clues, bench.entry, bench.weights, of_map=True))
    count = len(tried)
    right = [item.cause for item in tried if item.cause.error <= wanted]
    if right or not tried:
        return _one_a_field(right)[:_MOST_SHOWN], count
    is_small = sum(weight.numel() for weight in bench.weights.values()) < _SMALL_BLOCK
    tried.sort(key=lambda item: item.cause.error)
    for base in tried[: _BASES_IF_SMALL if is_small else _BASES]:
        more = list(_changed(bench, clues, base.entry, base.weights, of_map=False))
        count += len(more)
        right = [item.cause for item in more if item.cause.error <= wanted]
        if right:
            return (base.cause, right[0]), count
    return (), count


def _one_a_field(causes: Sequence[Cause]) -> tuple[Cause, ...]:
    """Of values of one field that do the same, the likeliest."""
    return tuple({c.change.partition(":")[0]: c for c in reversed(causes)}.values())[::-1]


def _changed(
    bench: Bench, clues: Clues, entry: BlockSpec, weights: Weights, *, of_map: bool
) -> Iterator[_Tried]:
    """Every change of this entry, and `of_map` of these weights, that can be run."""
    heads = getattr(entry, "num_heads", 0) or 1
    width = getattr(entry, "head_dim", None) or max(1, clues.hidden_size // heads)
    sizes = Sizes(clues.hidden_size, heads, width)
    changes = field_changes(entry, bench.registry, clues.config, sizes, weights)
    for change in changes:
        error = bench.error(change.entry, weights)
        if error is not None:
            text = f"{change.field}: {change.value}"
            cause = Cause(text, change.old, "field", clues.where, error)
            yield _Tried(cause, change.entry, weights)
    if not of_map:
        return
    prefix = f"{bench.path}."
    own = {n.removeprefix(prefix): s for n, s in clues.slots.items() if n.startswith(prefix)}
    rules = RuleLookup(clues.weight_map)
    for change in weight_changes(weights, own):
        error = bench.error(entry, change.weights)
        if error is not None:
            found = rules.all(prefix + change.parameter)
            where = found[0].where if found else clues.weight_map.name
            cause = Cause(change.change, change.instead_of, "weights", where, error)
            yield _Tried(cause, entry, change.weights)
