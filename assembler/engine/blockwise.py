"""Searches of long rows: several times as fast as torch's on a CPU.

The k largest values and places in cumulative sums need one vectorised pass over the row to find a
number for each block; everything else happens among few blocks. Rows that are no multiple of the
block go torch's way. The largest values of many rows are found by numpy, which vectorises that, in
16 bits as integers; of several equal ones the first, as torch does on a CPU. The other results are
the same but for which of several equal values comes first.

Shapes: R rows, V values a row, B blocks of them.
"""

from __future__ import annotations

import numpy as np
import torch

_BLOCK = 64
_FEW_ROWS = 4  # of which torch's one pass is done before numpy's several have begun
# The bits of -inf in 16 bits, as an unsigned number; NaN with a sign stands above it.
_MINUS_INF = {torch.bfloat16: 0xFF80, torch.float16: 0xFC00}


def largest(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest value [R] of each row of `values` [R, V], and its column; NaN is the largest."""
    if values.device.type != "cpu" or len(values) <= _FEW_ROWS:
        return tuple(values.max(dim=-1))
    if values.dtype in _MINUS_INF:
        column = _largest_of_16_bits(values)
    else:
        column = torch.from_numpy(values.detach().numpy().argmax(-1))
    return values.gather(-1, column.unsqueeze(1)).squeeze(1), column


def _largest_of_16_bits(values: torch.Tensor) -> torch.Tensor:
    """The columns [R] of the largest values of bfloat16 or float16.

    Bits of numbers that are not negative are integers of the same order, below those of NaN. Rows
    without such a number, and rows with a NaN that has a sign, are rare.
    """
    bits = values.detach().view(torch.int16).numpy()
    columns = bits.argmax(-1)
    negative = np.take_along_axis(bits, columns[:, None], -1)[:, 0] < 0
    rare = negative | (bits.view(np.uint16).max(-1) > _MINUS_INF[values.dtype])
    found = torch.from_numpy(columns)
    if rare.any():
        rows = torch.from_numpy(rare.nonzero()[0])
        found[rows] = values[rows].float().argmax(-1)
    return found


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
