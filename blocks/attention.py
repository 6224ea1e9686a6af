"""Causal self-attention over a KV cache, with every option that dense decoders differ in.

Shapes: T stands for the leading dims, [batch, length] in a dense forward and [tokens] in a paged
one; H, K are this rank's query and key/value heads, D is head_dim.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.context import BuildContext, CacheSpec, ForwardContext
from assembler.blocks.linear import ColumnLinear, RowLinear
from assembler.blocks.norms import NormSpec
from assembler.blocks.parallel import Part
from assembler.blocks.rope import (
    RopeSettings,
    RopeStyle,
    RotaryEmbedding,
    apply_rotary,
    rotary_dim,
)
from assembler.errors import SpecError
from assembler.kernels.dense_attention import dense_attention


class RopeAttn(nn.Module):
    """Multi-head attention with rotary positions (Vaswani et al., 2017; Su et al., 2021).

    Covers multi-head, grouped-query (Ainslie et al., 2023) and multi-query attention, QK-norm,
    sliding windows and soft-capped scores. Query head h reads key/value head h // (H // K).

    Args:
        num_heads: Query heads of the whole model.
        num_kv_heads: Key/value heads; null means one for every query head (no grouping).
        head_dim: Width of a head; null means hidden_size / num_heads.
        qkv_bias: Whether the q, k and v projections add a bias (Qwen2).
        o_bias: Whether the output projection adds a bias.
        qk_norm: Norm block applied to queries and keys, each with its own weight (Qwen3, Gemma 3).
        qk_norm_over: What one norm spans: each "head" alone or the "full" projection (OLMo 2).
        qk_norm_position: Whether QK-norm comes "before" or "after" the rotation.
        rope: Settings of the rotary embedding; null means positions are not rotated (NoPE).
        rope_style: Pairs that turn: "half" (d with d + dim/2) or "interleaved" (2d with 2d + 1).
        window: Sliding window in tokens, the query's own included (Mistral); null means all.
        softcap: Bound of the scores, cap * tanh(score / cap), before the mask (Gemma 2).
        scale: Factor of the scores; null means 1 / sqrt(head_dim).
    """

    role: ClassVar[str] = "attention"
    cache_index: int  # which of a pass's kv_caches is this block's; the model's builder counts them

    def __init__(
        self,
        ctx: BuildContext,
        *,
        num_heads: Annotated[int, Field(gt=0)],
        num_kv_heads: Annotated[int, Field(gt=0)] | None = None,
        head_dim: Annotated[int, Field(gt=0)] | None = None,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: NormSpec | None = None,
        qk_norm_over: Literal["head", "full"] = "head",
        qk_norm_position: Literal["before", "after"] = "before",
        rope: RopeSettings | None = None,
        rope_style: RopeStyle = "half",
        window: Annotated[int, Field(gt=0)] | None = None,
        softcap: Annotated[float, Field(gt=0)] | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        kv_heads, dim = _head_geometry(ctx, num_heads, num_kv_heads, head_dim)
        self.head_dim = dim
        self.window = window
        self.softcap = softcap
        self.scale = dim**-0.5 if scale is None else scale

        q = Part("q", num_heads * dim, unit=dim, bundle=num_heads // kv_heads)
        k = Part("k", kv_heads * dim, unit=dim, replicate=True)
        v = Part("v", kv_heads * dim, unit=dim, replicate=True)
        qkv_path = f"{ctx.path}.qkv"
        self.qkv = ColumnLinear(ctx.hidden_size, (q, k, v), qkv_bias, ctx.tp, qkv_path)
        self.o = RowLinear(q, ctx.hidden_size, o_bias, ctx.tp, f"{ctx.path}.o")
        self.num_heads, self.num_kv_heads, _ = (n // dim for n in self.qkv.local_sizes)

        self.q_norm = self.k_norm = None
        self.norm_full = qk_norm_over == "full"
        self.norm_after_rope = qk_norm_position == "after"
        if qk_norm is not None:
            full_q, full_k = (q, k) if self.norm_full else (None, None)
            self.q_norm = ctx.child(qk_norm, "q_norm", width=dim, part=full_q)
            self.k_norm = ctx.child(qk_norm, "k_norm", width=dim, part=full_k)

        self.rope = None
        if rope is not None:
            self.rope = RotaryEmbedding(rope, rotary_dim(rope, dim, ctx.path), rope_style)

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; in a paged pass also stores the tokens' keys and values."""
        q, k, v = self._project(x, ctx)
        if ctx.paged is None:
            out = dense_attention(
                q, k, v, scale=self.scale, window=self.window, softcap=self.softcap
            )
        else:
            out = self._attend_paged(q, k, v, ctx)
        return self.o(out.flatten(-2))

    def _project(self, x: torch.Tensor, ctx: ForwardContext) -> tuple[torch.Tensor, ...]:
        """Normed and rotated q [T, H, D], k [T, K, D] and v [T, K, D]; v is a view of the qkv."""
        heads = self.qkv(x).view(*x.shape[:-1], -1, self.head_dim)
        num_q, num_kv = self.num_heads, self.num_kv_heads
        if self.q_norm is None:  # q and k lie side by side: one rotation turns both
            qk, v = heads.split((num_q + num_kv, num_kv), dim=-2)
            q, k = self._rotate(qk, ctx).split((num_q, num_kv), dim=-2)
            return q, k, v
        q, k, v = heads.split((num_q, num_kv, num_kv), dim=-2)
        if self.norm_after_rope:
            q, k = self._rotate(q, ctx), self._rotate(k, ctx)
            return self._normalise(self.q_norm, q), self._normalise(self.k_norm, k), v
        q, k = self._normalise(self.q_norm, q), self._normalise(self.k_norm, k)
        return self._rotate(q, ctx), self._rotate(k, ctx), v

    def _rotate(self, heads: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        if self.rope is None:
            return heads
        cos, sin = self.rope(ctx, heads.dtype)
        return apply_rotary(heads, cos, sin, self.rope.style)

    def _normalise(self, norm: nn.Module, heads: torch.Tensor) -> torch.Tensor:
        if not self.norm_full:
            return norm(heads)
        return norm(heads.flatten(-2)).view(heads.shape)

    def _attend_paged(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ctx: ForwardContext
    ) -> torch.Tensor:
        """Store k and v of the step's tokens, then attend to all that is cached."""
        k_cache, v_cache = ctx.kv_caches[self.cache_index]
        ctx.attention.store_kv(k, v, k_cache, v_cache, ctx.paged.slot_mapping)
        return ctx.attention.attend(
            q,
            k_cache,
            v_cache,
            ctx.paged,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
        )

    def cache_spec(self) -> CacheSpec:
        """The KV memory this block needs on this rank."""
        return CacheSpec(self.num_kv_heads, self.head_dim, self.window)


def _head_geometry(
    ctx: BuildContext, num_heads: int, num_kv_heads: int | None, head_dim: int | None
) -> tuple[int, int]:
    """(key/value heads, head_dim) with the nulls filled in; raises `SpecError` if they misfit."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    problems = []
    if num_heads % kv_heads:
        problems.append(f"num_heads {num_heads} is not a multiple of num_kv_heads {kv_heads}")
    if head_dim is None and ctx.hidden_size % num_heads:
        problems.append(
            f"hidden_size {ctx.hidden_size} is not a multiple of num_heads {num_heads}; "
            "give head_dim"
        )
    if problems:
        raise SpecError(f"{ctx.path}: {'; '.join(problems)}")
    return kv_heads, ctx.hidden_size // num_heads if head_dim is None else head_dim
