"""Searches of long rows in two steps, blocks first: several times as fast as torch's on a CPU.

Largest values, their places and places in cumulative sums need one vectorised pass over the row to
find a number for each block; everything else happens among few blocks. Rows that are no multiple of
the block go torch's way. The results are the same: which of several equal values is found first is
all that may differ.

Shapes: R rows, V values a row, B blocks of them.
"""

from __future__ import annotations

import torch

_BLOCK = 64


def largest(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest value [R] of each row of `values` [R, V], and its column; NaN is the largest."""
    if values.shape[-1] % _BLOCK:
        return tuple(values.max(dim=-1))
    blocks = values.unflatten(-1, (-1, _BLOCK))
    best, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(len(values), device=values.device), block]
    return best, block * _BLOCK + inside.argmax(dim=-1)


def top_k(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` largest values [R, k] of each row, from the largest on, and their columns."""
    num_blocks, rest = divmod(values.shape[-1], _BLOCK)
    if rest or not 0 < k * 4 <= num_blocks:
        return tuple(values.topk(k, dim=-1))
    # Each of k blocks has a value as large as the least of their maxima: those k are not below what
    # other blocks hold.
    blocks = values.unflatten(-1, (-1, _BLOCK))
    chosen = blocks.amax(dim=-1).topk(k, dim=-1).indices
    inside = blocks.gather(1, chosen.unsqueeze(-1).expand(-1, -1, _BLOCK)).flatten(1)
    found, places = inside.topk(k, dim=-1)
    block = chosen.gather(-1, places // _BLOCK)
    return found, block * _BLOCK + places % _BLOCK


def invert_cdf(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The columns [R, 1] at which the cumulative sums of `weights` [R, V] pass `numbers` [R, 1].

    Args:
        weights: not negative, of any sum.
        numbers: shares of that sum, 0 to 1.
    """
    if weights.shape[-1] % _BLOCK:
        return _invert(weights, numbers * weights.cumsum(dim=-1)[:, -1:])
    blocks = weights.unflatten(-1, (-1, _BLOCK))
    sums = blocks.sum(dim=-1)
    cumulative = sums.cumsum(dim=-1)
    target = numbers * cumulative[:, -1:]
    block = _invert(sums, target)
    before = cumulative.gather(-1, block) - sums.gather(-1, block)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).squeeze(1)
    return block * _BLOCK + _invert(inside, target - before)


def _invert(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The columns [R, 1] at which the cumulative sums of `weights` pass `target` [R, 1]."""
    columns = torch.searchsorted(weights.cumsum(dim=-1), target, right=True)
    return columns.clamp_(max=weights.shape[-1] - 1)
