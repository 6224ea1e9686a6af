"""The rotation of rotary position embeddings (RoFormer, Su et al., 2021), in plain torch."""

from __future__ import annotations

from typing import Literal

import torch


def apply_rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    style: Literal["half", "half_reversed", "interleaved"],
) -> torch.Tensor:
    """Turn the first dims of every head of `x` [..., tokens, heads, head_dim]; the rest passes.

    Args:
        cos, sin: [tokens, 1, dim]; sin carries the minus sign of the rotation: each of its numbers
            multiplies the *partner* of the dimension it stands at.
        style: dimension d is a pair with d + dim / 2, or ("interleaved") 2d with 2d + 1.
    """
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat((apply_rotary(x[..., :dim], cos, sin, style), x[..., dim:]), dim=-1)
    if style != "interleaved":
        partner = x.roll(dim // 2, dims=-1)
    else:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, partner, sin)
