"""Causal self-attention over a KV cache, with every option that dense decoders differ in.

Shapes: T stands for the leading dims, [batch, length] in a dense forward and [tokens] in a paged
one; H, K are this rank's query and key/value heads, D is head_dim.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.alibi import Alibi, AlibiSettings
from assembler.blocks.attention_gate import GateSpec
from assembler.blocks.attention_heads import head_parts
from assembler.blocks.context import BuildContext, CacheSpec, ForwardContext
from assembler.blocks.linear import ColumnLinear, RowLinear
from assembler.blocks.norms import NormSpec
from assembler.blocks.parallel import ShardDim
from assembler.blocks.position_scale import PositionScale, position_factors
from assembler.blocks.qk_norm import QKNormOver, make_qk_norm, normalise
from assembler.blocks.rope import (
    RopeSettings,
    RopeStyle,
    RotaryEmbedding,
    apply_rotary,
    rotary_dim,
)
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dense_attention import dense_attention


class RopeAttn(nn.Module):
    """Multi-head attention with rotary positions (Vaswani et al., 2017; Su et al., 2021).

    Covers multi-head, grouped-query (Ainslie et al., 2023) and multi-query attention. Query head h
    reads key/value head h // (H // K). Queries and keys are normed, clipped, rotated and scaled in
    this order (normed last with `qk_norm_position: after`); the heads' outputs are normed, gated
    and projected.

    Args:
        num_heads: Query heads of the whole model.
        num_kv_heads: Key/value heads; null means one for every query head (no grouping).
        head_dim: Width of a head; null means hidden_size / num_heads.
        qkv_bias: Whether the q, k and v projections add a bias (Qwen2).
        o_bias: Whether the output projection adds a bias.
        qk_norm: Norm block applied to queries and keys, each with its own weight (Qwen3, Gemma 3).
        qk_norm_over: What one norm spans: a "head", all with one weight; "each_head", with a weight
            of its own (Cohere, StableLM); or the "full" projection (OLMo 2).
        qk_norm_position: Whether QK-norm comes "before" or "after" the rotation.
        clip_qkv: Bound of queries, keys and values, to which they are clipped (OLMo, DBRX).
        rope: Settings of the rotary embedding; null means positions are not rotated (NoPE).
        rope_style: Pairs that turn: "half" (d with d + dim/2), "half_reversed" (the same, turned
            the other way) or "interleaved" (2d with 2d + 1).
        position_scale: How queries grow with their position (Llama 4); null means not at all.
        alibi: Settings of linear biases by distance (BLOOM, MPT); null means none.
        window: Sliding window in tokens, the query's own included (Mistral); null means all.
        chunk: Tokens of a chunk; a query sees keys of its own chunk only (Llama 4); null means all.
        softcap: Bound of the scores, cap * tanh(score / cap), before the mask (Gemma 2).
        sinks: Whether each head has a learned score that takes its share of the softmax (gpt-oss).
        scale: Factor of the scores; null means 1 / sqrt(head_dim).
        out_norm: Norm block over the outputs of all heads, before the output projection (BitNet).
        gate: Gate block on the outputs of the heads, before the output projection (AFMoE).
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
        qk_norm_over: QKNormOver = "head",
        qk_norm_position: Literal["before", "after"] = "before",
        clip_qkv: Annotated[float, Field(gt=0)] | None = None,
        rope: RopeSettings | None = None,
        rope_style: RopeStyle = "half",
        position_scale: PositionScale | None = None,
        alibi: AlibiSettings | None = None,
        window: Annotated[int, Field(gt=0)] | None = None,
        chunk: Annotated[int, Field(gt=0)] | None = None,
        softcap: Annotated[float, Field(gt=0)] | None = None,
        sinks: bool = False,
        scale: float | None = None,
        out_norm: NormSpec | None = None,
        gate: GateSpec | None = None,
    ) -> None:
        super().__init__()
        q, k, v = head_parts(ctx, num_heads, num_kv_heads, head_dim)
        dim = self.head_dim = q.unit
        self.window, self.chunk, self.softcap = window, chunk, softcap
        self.scale = dim**-0.5 if scale is None else scale
        self.clip_qkv = clip_qkv
        self.position_scale = position_scale

        qkv_path = f"{ctx.path}.qkv"
        self.qkv = ColumnLinear(ctx.hidden_size, (q, k, v), qkv_bias, ctx.tp, qkv_path)
        self.o = RowLinear(q, ctx.hidden_size, o_bias, ctx.tp, f"{ctx.path}.o")
        self.num_heads, self.num_kv_heads, _ = (n // dim for n in self.qkv.local_sizes)

        self.q_norm = make_qk_norm(ctx, qk_norm, qk_norm_over, q)
        self.k_norm = make_qk_norm(ctx, qk_norm, qk_norm_over, k)
        self.norm_over = qk_norm_over
        self.norm_after_rope = qk_norm_position == "after"
        self.rope = None
        if rope is not None:
            self.rope = RotaryEmbedding(rope, rotary_dim(rope, dim, ctx.path), rope_style)

        self.heads = q.whole_units()
        self.alibi = None if alibi is None else Alibi(alibi, self.heads, ctx.tp)
        values = nn.Parameter(torch.empty(self.num_heads)) if sinks else None
        self.register_parameter("sinks", values)
        self.out_norm = None if out_norm is None else ctx.child(out_norm, "out_norm", part=q)
        self.gate = None if gate is None else ctx.child(gate, "gate", heads=q)

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; in a paged pass also stores the tokens' keys and values."""
        q, k, v = self._project(x, ctx)
        if ctx.paged is None:
            out = dense_attention(q, k, v, self._options())
        else:
            out = self._attend_paged(q, k, v, ctx)
        if self.out_norm is not None:
            out = self.out_norm(out.flatten(-2)).view(out.shape)
        if self.gate is not None:
            out = self.gate(x, out)
        return self.o(out.flatten(-2))

    def _project(self, x: torch.Tensor, ctx: ForwardContext) -> tuple[torch.Tensor, ...]:
        """Normed, clipped, rotated and scaled q [T, H, D], k [T, K, D] and v [T, K, D]."""
        heads = self.qkv(x).view(*x.shape[:-1], -1, self.head_dim)
        num_q, num_kv = self.num_heads, self.num_kv_heads
        if self.q_norm is None:  # q and k lie side by side: one rotation turns both
            qk, v = self._clip(heads).split((num_q + num_kv, num_kv), dim=-2)
            q, k = self._rotate(qk, ctx).split((num_q, num_kv), dim=-2)
        else:
            q, k, v = heads.split((num_q, num_kv, num_kv), dim=-2)
            q, k = self._turn(q, self.q_norm, ctx), self._turn(k, self.k_norm, ctx)
            v = self._clip(v)
        if self.position_scale is not None:
            q = q * position_factors(self.position_scale, ctx, q.dtype)
        return q, k, v

    def _turn(self, heads: torch.Tensor, norm: nn.Module, ctx: ForwardContext) -> torch.Tensor:
        """Queries or keys, normed on one side of clipping and rotation."""
        if self.norm_after_rope:
            return normalise(norm, self._rotate(self._clip(heads), ctx), self.norm_over)
        return self._rotate(self._clip(normalise(norm, heads, self.norm_over)), ctx)

    def _clip(self, heads: torch.Tensor) -> torch.Tensor:
        return heads if self.clip_qkv is None else heads.clamp(-self.clip_qkv, self.clip_qkv)

    def _rotate(self, heads: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        if self.rope is None:
            return heads
        cos, sin = self.rope(ctx, heads.dtype)
        return apply_rotary(heads, cos, sin, self.rope.style)

    def _attend_paged(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ctx: ForwardContext
    ) -> torch.Tensor:
        """Store k and v of the step's tokens, then attend to all that is cached."""
        k_cache, v_cache = ctx.kv_caches[self.cache_index]
        ctx.attention.store_kv(k, v, k_cache, v_cache, ctx.paged.slot_mapping)
        return ctx.attention.attend(q, k_cache, v_cache, ctx.paged, self._options())

    def _options(self) -> AttentionOptions:
        alibi = self.alibi
        return AttentionOptions(
            scale=self.scale,
            window=self.window,
            chunk=self.chunk,
            softcap=self.softcap,
            sinks=self.sinks,
            alibi_slopes=None if alibi is None else alibi.slopes,
            alibi_rounded=alibi is not None and alibi.settings.rounded,
        )

    def cache_spec(self) -> CacheSpec:
        """The KV memory this block needs on this rank."""
        return CacheSpec(self.num_kv_heads, self.head_dim, self._options().reach)

    def shard_dims(self) -> dict[str, ShardDim]:
        """The sinks go with their heads."""
        if self.sinks is None:
            return {}
        return {"sinks": ShardDim("column", (self.heads.size,), 0, (self.heads,))}
