"""Quantised copies of checkpoints, made with plain torch; what they mean says transformers."""

from __future__ import annotations

import torch

FP8 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]


def by_blocks(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(8-bit values, the scale of every block [rows, columns])."""
    rows, columns = weight.shape
    grid = -(-rows // block[0]), -(-columns // block[1])
    scales, values = torch.empty(grid), torch.empty(rows, columns)
    for r in range(grid[0]):
        for c in range(grid[1]):
            window = (
                slice(r * block[0], (r + 1) * block[0]),
                slice(c * block[1], (c + 1) * block[1]),
            )
            scales[r, c] = weight[window].abs().max() / 448
            values[window] = weight[window] / scales[r, c]
    return values.to(FP8), scales


def decoded(values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The plain weight, value by value."""
    rows, columns = values.shape
    at = [torch.arange(n) // size for n, size in zip((rows, columns), block, strict=True)]
    return values.float() * scales.float()[at[0]][:, at[1]]


def fp8(
    weights: Tensors, block: tuple[int, int], suffix: str = "_scale_inv"
) -> tuple[Tensors, Tensors]:
    """(on disk, in memory): every projection as 8-bit blocks, the rest as it is."""
    disk, plain = {}, {}
    for name, value in weights.items():
        disk[name] = plain[name] = value
        if "_proj." in name and value.dim() == 2:
            values, scales = by_blocks(value, block)
            disk[name], disk[name + suffix] = values, scales
            plain[name] = decoded(values, scales, block)
    return disk, plain
