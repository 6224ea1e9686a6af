"""What a weight map may have got wrong unseen: parts exchanged, rows in another order, transposes.

Headers cannot show these (shapes agree), so they are tried on the weights as they were loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations

import torch

from assembler.blocks.parallel import Part
from assembler.verifying.trials import Weights
from assembler.weights.parameters import ParameterSlot


@dataclass(frozen=True)
class WeightChange:
    """A block's weights in another order."""

    change: str  # parts of gate_up: up, gate
    instead_of: str  # gate, up
    parameter: str  # by its path in the block
    weights: Weights


def weight_changes(weights: Weights, slots: dict[str, ParameterSlot]) -> Iterator[WeightChange]:
    """The weights with one mistake of a map undone.

    Args:
        weights: the block's, by path within the block.
        slots: the same parameters' layouts.
    """
    fused = {name.rpartition(".")[0] for name, slot in slots.items() if len(slot.layout.parts) > 1}
    for module in sorted(fused):
        yield from _orders_of_parts(module, weights, slots)
        yield from _orders_of_rows(module, weights, slots)
    yield from _transposes(weights)
    yield from _exchanges(weights)


def _leaves(module: str, slots: dict[str, ParameterSlot]) -> list[str]:
    return [n for n, s in slots.items() if n.rpartition(".")[0] == module and s.layout.parts]


def _rows(parts: tuple[Part, ...]) -> dict[str, torch.Tensor]:
    starts = torch.tensor([0, *(part.size for part in parts)]).cumsum(0).tolist()
    return {p.name: torch.arange(s, s + p.size) for p, s in zip(parts, starts, strict=False)}


def _reordered(
    module: str, order: torch.Tensor, weights: Weights, slots: dict[str, ParameterSlot]
) -> Weights:
    """The rows of a module's parameters taken in `order`."""
    changed = dict(weights)
    for name in _leaves(module, slots):
        if weights[name].shape[slots[name].dim] != len(order):
            continue
        changed[name] = weights[name].index_select(slots[name].dim, order)
    return changed


def _orders_of_parts(
    module: str, weights: Weights, slots: dict[str, ParameterSlot]
) -> Iterator[WeightChange]:
    """Parts of one size in another order."""
    parts = slots[_leaves(module, slots)[0]].parts
    rows = _rows(parts)
    names = [part.name for part in parts]
    for order in permutations(names):
        sizes_stay = all(len(rows[a]) == len(rows[b]) for a, b in zip(names, order, strict=True))
        if list(order) == names or not sizes_stay:
            continue
        taken = torch.cat([rows[name] for name in order])
        # order[k] is what stands where names[k] is expected
        yield WeightChange(
            f"the parts of {module} in the order {', '.join(_inverse(names, order))}",
            ", ".join(names),
            _leaves(module, slots)[0],
            _reordered(module, taken, weights, slots),
        )


def _inverse(names: list[str], order: tuple[str, ...]) -> list[str]:
    """The order on disk, given which stored part each name was found under."""
    found = {stored: name for name, stored in zip(names, order, strict=True)}
    return [found[name] for name in names]


def _orders_of_rows(
    module: str, weights: Weights, slots: dict[str, ParameterSlot]
) -> Iterator[WeightChange]:
    """Parts in turns: by row, by head, by key/value head."""
    parts = slots[_leaves(module, slots)[0]].parts
    total = torch.arange(sum(part.size for part in parts))
    alike = len({(part.size, part.unit) for part in parts}) == 1
    ways: dict[str, int] = {}
    if alike and parts[0].unit == 1:
        ways["row"] = parts[0].size
    if alike and parts[0].unit > 1:
        ways["head"] = parts[0].units
    units = {part.units for part in parts}
    if parts[0].unit > 1 and len(units) > 1 and max(units) % min(units) == 0:
        ways["kv_head"] = min(units)
    for way, groups in ways.items():
        taken = _by_groups(parts, groups)
        inverse = torch.empty_like(total)
        inverse[taken] = total
        leaf = _leaves(module, slots)[0]
        apart = "one part after the other"
        weights_by = _reordered(module, taken, weights, slots)
        yield WeightChange(f"{module}: per: {way}", apart, leaf, weights_by)
        weights_apart = _reordered(module, inverse, weights, slots)
        yield WeightChange(f"{module}: {apart}", f"per: {way}", leaf, weights_apart)


def _by_groups(parts: tuple[Part, ...], groups: int) -> torch.Tensor:
    """Where each row of the parts is when disk holds them in `groups` turns."""
    each = [part.size // groups for part in parts]
    rows, start = [], 0
    for size in each:
        turns = torch.arange(groups)[:, None] * sum(each) + start
        rows.append((turns + torch.arange(size)).flatten())
        start += size
    return torch.cat(rows)


def _transposes(weights: Weights) -> Iterator[WeightChange]:
    for name, weight in weights.items():
        if weight.dim() >= 2 and weight.shape[-1] == weight.shape[-2]:
            changed = {**weights, name: weight.transpose(-1, -2).contiguous()}
            yield WeightChange(f"{name} transposed", "as stored", name, changed)


def _exchanges(weights: Weights) -> Iterator[WeightChange]:
    """The parameters of two modules of one shape exchanged."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in weights.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = weight
    for (a, of_a), (b, of_b) in combinations(modules.items(), 2):
        if {k: v.shape for k, v in of_a.items()} != {k: v.shape for k, v in of_b.items()}:
            continue
        changed = dict(weights)
        for leaf in of_a:
            changed[_path(a, leaf)], changed[_path(b, leaf)] = of_b[leaf], of_a[leaf]
        yield WeightChange(
            f"{a} and {b} exchanged", "as named", _path(a, next(iter(of_a))), changed
        )


def _path(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf
