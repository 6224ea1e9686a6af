"""RMSNorm and LayerNorm over the last dimension, in plain torch: on any device, with gradients.

The order of casts is that of the models the norms come from (see the blocks of these names); the
Triton kernels follow it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def rms_norm_torch(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: int
) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * (offset + weight), means in float32.

    With offset 0 the normed x is rounded to its dtype before the weight multiplies it; with offset
    1 the sum and the product are float32 and rounded once.

    Args:
        x: [..., width], or [..., heads, width] where each head has a weight of its own.
        weight: [width] or [heads, width]; None for none.
        eps: added to the mean square before the root.
        offset: 0 or 1.
    """
    shape = x.shape[-1:]
    if weight is None:
        return F.rms_norm(x, shape, None, eps)
    if weight.dim() > 1 or (offset == 0 and x.dtype != torch.float32):
        wide = x.float() if offset else x
        return weigh_rms(F.rms_norm(wide, shape, None, eps), weight, offset, x.dtype)
    if offset:
        return F.rms_norm(x.float(), shape, weight.float() + offset, eps).type_as(x)
    # No cast between the two steps, so one call does both.
    return F.rms_norm(x, shape, weight, eps)


def layer_norm_torch(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    offset: int,
) -> torch.Tensor:
    """(x - mean) / sqrt(var(x) + eps) * (offset + weight) + bias, in float32, rounded once.

    Args:
        x: [..., width], or [..., heads, width] where each head has a weight of its own.
        weight, bias: [width] or [heads, width]; None for none.
        eps: added to the variance before the root.
        offset: 0 or 1; the sum with the weight is rounded to the weight's dtype.
    """
    shape = x.shape[-1:]
    if any(leaf is not None and leaf.dim() > 1 for leaf in (weight, bias)):
        normed = F.layer_norm(x.float(), shape, None, None, eps)
        return weigh_layer(normed, weight, bias, offset, x.dtype)
    return F.layer_norm(x, shape, _shifted(weight, offset), bias, eps)


def weigh_rms(
    normed: torch.Tensor, weight: torch.Tensor | None, offset: int, dtype: torch.dtype
) -> torch.Tensor:
    """`normed` times the weight, if there is one, in `dtype`."""
    if weight is None:
        return normed.to(dtype)
    if offset:
        return (normed * (weight.float() + offset)).to(dtype)
    return normed.to(dtype) * weight


def weigh_layer(
    normed: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    offset: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`normed` (float32) times weight plus bias, where there are any, in `dtype`."""
    if weight is not None:
        normed = normed * _shifted(weight, offset).float()
    return (normed if bias is None else normed + bias.float()).to(dtype)


def _shifted(weight: torch.Tensor | None, offset: int) -> torch.Tensor | None:
    return weight + offset if weight is not None and offset else weight
