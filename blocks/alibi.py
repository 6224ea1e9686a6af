"""ALiBi: attention biases that grow with the distance, in place of position embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import Part, TensorParallel
from assembler.blocks.self_attention import Bound, Count, SelfAttention
from assembler.kernels.attention_options import AttentionOptions


def alibi_slopes(num_heads: int, max_bias: float) -> torch.Tensor:
    """[num_heads] slopes, float32, on the CPU: 2 ** -(max_bias * (h + 1) / n) for head h of n.

    For a number of heads that is no power of two, those of the next power are dealt out: every
    second one first, then those between.
    """
    power = 2 ** math.ceil(math.log2(num_heads))
    exponents = torch.arange(1, power + 1, dtype=torch.float32, device="cpu") * (max_bias / power)
    slopes = 2.0**-exponents
    if power != num_heads:
        slopes = torch.cat((slopes[1::2], slopes[::2]))[:num_heads]
    return slopes


class Alibi(nn.Module):
    """The slopes of this rank's heads: float32 whatever the model's dtype, in no checkpoint."""

    def __init__(self, max_bias: float, heads: Part, tp: TensorParallel) -> None:
        """`heads` are the query heads of all ranks, one a row."""
        super().__init__()
        self.max_bias = max_bias
        self.num_heads = heads.size
        (self.rows,) = tp.local_rows((heads,), "alibi")
        self.register_buffer("slopes", None, persistent=False)
        self.reset_buffers(torch.empty(0).device)

    def reset_buffers(self, device: torch.device | str) -> None:
        """Recompute the slopes on `device`, e.g. after the module left the meta device."""
        slopes = alibi_slopes(self.num_heads, self.max_bias)
        self.slopes = slopes[self.rows.start : self.rows.stop].to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> Alibi:
        """Follow `.to(...)` to the device but not to a dtype."""
        super()._apply(fn, recurse)
        self.reset_buffers(self.slopes.device)
        return self

    def extra_repr(self) -> str:
        return f"max_bias={self.max_bias}"


class AlibiAttn(SelfAttention):
    """Multi-head attention with linear biases by distance (Press et al., 2022; BLOOM, MPT).

    Positions turn nothing: each score loses slope * distance, with a slope of each head's own.
    Grouped and multi-query attention as in RopeAttn.

    Args:
        num_heads: Query heads of the whole model.
        num_kv_heads: Key/value heads; null means one for every query head (no grouping).
        head_dim: Width of a head; null means hidden_size / num_heads.
        qkv_bias: Whether the q, k and v projections add a bias.
        o_bias: Whether the output projection adds a bias.
        clip_qkv: Bound of queries, keys and values, to which they are clipped (MPT).
        scale: Factor of the scores; null means 1 / sqrt(head_dim).
        max_bias: Of n heads the last has the slope 2 ** -max_bias (MPT: alibi_bias_max).
        rounded: Whether slopes and biases are rounded to bfloat16 and biases scaled as scores are:
            how Falcon was trained, which no other settings give.
    """

    def __init__(
        self,
        ctx: BuildContext,
        *,
        num_heads: Count,
        num_kv_heads: Count | None = None,
        head_dim: Count | None = None,
        qkv_bias: bool = False,
        o_bias: bool = False,
        clip_qkv: Bound | None = None,
        scale: float | None = None,
        max_bias: Bound = 8.0,
        rounded: bool = False,
    ) -> None:
        biases = {"qkv_bias": qkv_bias, "o_bias": o_bias}
        sizes = (num_heads, num_kv_heads, head_dim)
        super().__init__(ctx, *sizes, **biases, clip_qkv=clip_qkv, scale=scale)
        self.alibi = Alibi(max_bias, self.q_part.whole_units(), ctx.tp)
        self.rounded = rounded

    def options(self) -> AttentionOptions:
        """What there is besides the softmax over q·k."""
        return AttentionOptions(
            scale=self.scale,
            alibi_slopes=self.alibi.slopes,
            alibi_rounded=self.rounded,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )
