"""How the rows of a mixture of experts are cut into tiles for the Triton kernels.

No Triton here: sizes and tables are plain Python and torch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tiling(NamedTuple):
    """Constexprs of a launch: tile sizes, all powers of two."""

    BLOCK_M: int  # rows, i.e. tokens of one expert
    BLOCK_N: int  # output features
    BLOCK_K: int  # input features a step
    num_warps: int
    num_stages: int


def choose_tiling(rows: int, num_experts: int, itemsize: int) -> Tiling:
    """Tiles as tall as an expert's usual share of the rows, within what shared memory holds."""
    share = 1 << max(0, rows // num_experts - 1).bit_length()
    block_m = min(max(share, 16), 64)
    block_k = 32 if itemsize == 4 else 64
    return Tiling(block_m, 64, block_k, num_warps=4, num_stages=3)


def sort_into_tiles(
    chosen: torch.Tensor, num_experts: int, block_m: int
) -> tuple[torch.Tensor, ...]:
    """(order, tile_expert, tile_row, expert_end), as `experts_up_kernel` describes them.

    The number of tiles is an upper bound: every expert wastes less than one.
    """
    slots = chosen.flatten()
    order = slots.argsort(stable=True)
    counts = torch.zeros(num_experts, dtype=slots.dtype, device=slots.device)
    counts.scatter_add_(0, slots, torch.ones_like(slots))
    ends = counts.cumsum(0)
    tiles = (counts + block_m - 1) // block_m
    tile_ends = tiles.cumsum(0)
    bound = -(-len(slots) // block_m) + min(num_experts, len(slots))
    index = torch.arange(min(bound, len(slots)), device=slots.device)
    expert = torch.searchsorted(tile_ends, index, right=True)
    real = expert.clamp(max=num_experts - 1)
    within = index - (tile_ends - tiles)[real]
    row = (ends - counts)[real] + within * block_m
    ends = torch.cat((ends, ends.new_zeros(1)))
    return order.int(), expert.int(), row.int(), ends.int()
