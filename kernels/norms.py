"""RMSNorm and LayerNorm over the last dimension: one interface, and who computes them where.

With a `residual` the result is the pair (norm of the sum, the sum `residual + x`), in one pass over
memory where a fused kernel runs (see `fused`).
"""

from __future__ import annotations

from typing import TypeAlias

import torch

from assembler.kernels.fused import MAX_WIDTH, runs_fused
from assembler.kernels.norms_torch import layer_norm_torch, rms_norm_torch

NormResult: TypeAlias = "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"


def rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    eps: float,
    offset: int = 0,
) -> NormResult:
    """`rms_norm_torch` of x [..., width], or of `residual + x` with that sum."""
    if _fits(x, residual) and runs_fused(x, residual, weight):
        # Triton is imported by those who use it only: it is not there on every platform.
        from assembler.kernels import norms_triton

        if residual is None:
            return norms_triton.rms_norm(x, weight, eps, offset)
        return norms_triton.add_rms_norm(x, residual, weight, eps, offset)
    if residual is None:
        return rms_norm_torch(x, weight, eps, offset)
    total = residual + x
    return rms_norm_torch(total, weight, eps, offset), total


def layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    offset: int = 0,
) -> NormResult:
    """`layer_norm_torch` of x [..., width], or of `residual + x` with that sum."""
    if _fits(x, residual) and runs_fused(x, residual, weight, bias):
        from assembler.kernels import norms_triton

        if residual is None:
            return norms_triton.layer_norm(x, weight, bias, eps, offset)
        return norms_triton.add_layer_norm(x, residual, weight, bias, eps, offset)
    if residual is None:
        return layer_norm_torch(x, weight, bias, eps, offset)
    total = residual + x
    return layer_norm_torch(total, weight, bias, eps, offset), total


def _fits(x: torch.Tensor, residual: torch.Tensor | None) -> bool:
    return x.shape[-1] <= MAX_WIDTH and (residual is None or residual.shape == x.shape)
