"""What the attention blocks with keys and values for each head have in common.

Shapes: T stands for the leading dims, [batch, length] in a dense forward and [tokens] in a paged
one; H, K are this rank's query and key/value heads, D is head_dim.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.attention_heads import head_parts
from assembler.blocks.context import BuildContext, CacheSpec, ForwardContext
from assembler.blocks.linear import ColumnLinear, RowLinear
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dense_attention import dense_attention

Count = Annotated[int, Field(gt=0)]
Bound = Annotated[float, Field(gt=0)]


class SelfAttention(nn.Module):
    """Causal self-attention: projections, what the subclass does between them, and the KV cache.

    Covers multi-head, grouped-query (Ainslie et al., 2023) and multi-query attention. Query head h
    reads key/value head h // (H // K).
    """

    role: ClassVar[str] = "attention"
    cache_index: int  # which of a pass's kv_caches is this block's; the model's builder counts them
    # What 1 in a KV cache of 8 bits stands for; given by the checkpoint where it has scales.
    k_scale: float = 1.0
    v_scale: float = 1.0

    def __init__(
        self,
        ctx: BuildContext,
        num_heads: int,
        num_kv_heads: int | None,
        head_dim: int | None,
        *,
        qkv_bias: bool,
        o_bias: bool,
        clip_qkv: float | None,
        scale: float | None,
    ) -> None:
        """The arguments are fields of the subclasses, whose docstrings describe them."""
        super().__init__()
        q, k, v = head_parts(ctx, num_heads, num_kv_heads, head_dim)
        self.q_part, self.k_part = q, k  # the rows of all ranks
        dim = self.head_dim = q.unit
        self.scale = dim**-0.5 if scale is None else scale
        self.clip_qkv = clip_qkv
        qkv_path = f"{ctx.path}.qkv"
        self.qkv = ColumnLinear(ctx.hidden_size, (q, k, v), qkv_bias, ctx.tp, qkv_path)
        self.o = RowLinear(q, ctx.hidden_size, o_bias, ctx.tp, f"{ctx.path}.o")
        self.num_heads, self.num_kv_heads, _ = (n // dim for n in self.qkv.local_sizes)

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; in a paged pass also stores the tokens' keys and values."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        if ctx.paged is None:
            out = dense_attention(*self.prepare(heads, ctx), self.options())
        else:
            k_cache, v_cache = ctx.kv_caches[self.cache_index]
            q = self.store(heads, ctx)
            out = ctx.attention.attend(q, k_cache, v_cache, ctx.paged, self.options())
        return self.o(self.finish(x, out).flatten(-2))

    def store(self, heads: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """Store the keys and values of a paged step's projections; its queries [T, H, D]."""
        q, k, v = self.prepare(heads, ctx)
        k_cache, v_cache = ctx.kv_caches[self.cache_index]
        scales = (self.k_scale, self.v_scale)
        ctx.attention.store_kv(k, v, k_cache, v_cache, ctx.paged.slot_mapping, *scales)
        return q

    def prepare(self, heads: torch.Tensor, ctx: ForwardContext) -> tuple[torch.Tensor, ...]:
        """The projections [T, H + 2 K, D] -> q [T, H, D], k [T, K, D] and v [T, K, D]."""
        num_q, num_kv = self.num_heads, self.num_kv_heads
        return self.clip(heads).split((num_q, num_kv, num_kv), dim=-2)

    def clip(self, heads: torch.Tensor) -> torch.Tensor:
        """Queries, keys or values within `clip_qkv`."""
        return heads if self.clip_qkv is None else heads.clamp(-self.clip_qkv, self.clip_qkv)

    def finish(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What the heads read, out [T, H, D], before it is projected; x is the block's input."""
        return out

    def options(self) -> AttentionOptions:
        """What there is besides the softmax over q·k."""
        return AttentionOptions(scale=self.scale, k_scale=self.k_scale, v_scale=self.v_scale)

    def cached_parts(self) -> dict[str, tuple[str, str]]:
        """(parameter, part) that makes the cached keys and values, by kind."""
        return {"k": ("qkv.weight", "k"), "v": ("qkv.weight", "v")}

    def cache_spec(self) -> CacheSpec:
        """The KV memory this block needs on this rank."""
        return CacheSpec(self.num_kv_heads, self.head_dim, self.options().reach)
