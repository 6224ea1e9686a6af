"""What happens to rows between a router and its experts, and behind them, in plain torch.

The references of `routing_rows_triton`. Choices are numbered as slots: slot n * K + j is the j-th
choice of token n. Sorting them is stable, so the table is a function of the choices alone.

Shapes: N tokens, K experts a token, E experts, H hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Alignment(NamedTuple):
    """Whose each row and each tile of rows is; all int32."""

    order: torch.Tensor  # [N * K], the slot that stands in each row
    tile_expert: torch.Tensor  # [tiles]; E for tiles that nobody needs, which are last
    tile_row: torch.Tensor  # [tiles], the first row of each; 0 for those
    expert_end: torch.Tensor  # [E + 1], the row after an expert's last; 0 for E


def count_tiles(rows: int, num_experts: int, block_m: int) -> int:
    """How many tiles of `block_m` rows there are at most: every expert wastes less than one."""
    return (rows + min(num_experts, rows) * (block_m - 1)) // block_m


def align_experts_torch(chosen: torch.Tensor, num_experts: int, block_m: int) -> Alignment:
    """Chosen [N, K] (int64, below `num_experts`) by expert, in tiles of `block_m` rows."""
    slots = chosen.flatten()
    order = slots.argsort(stable=True)
    counts = torch.zeros(num_experts, dtype=slots.dtype, device=slots.device)
    counts.scatter_add_(0, slots, torch.ones_like(slots))
    ends, tiles = counts.cumsum(0), (counts + block_m - 1) // block_m
    tile_ends, zero = tiles.cumsum(0), ends.new_zeros(1)
    index = torch.arange(count_tiles(len(slots), num_experts, block_m), device=slots.device)
    expert = torch.searchsorted(tile_ends, index, right=True)
    first_row, first_tile = (
        torch.cat((t, zero))[expert] for t in (ends - counts, tile_ends - tiles)
    )
    row = torch.where(expert < num_experts, first_row + (index - first_tile) * block_m, 0)
    return Alignment(*(t.int() for t in (order, expert, row, torch.cat((ends, zero)))))


def sum_experts_torch(rows: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The weighted sum of each token's rows [N, K, H] -> [N, H], in their dtype.

    Weights [N, K] are float32 whatever the rows are: the sum is rounded once. None: all are 1.
    """
    if weights is None:
        return rows.sum(dim=1)
    return (rows * weights[..., None]).sum(dim=1).type_as(rows)
