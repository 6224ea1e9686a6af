"""Causal self-attention whose queries and keys are rotated, as most dense decoders have it.

Shapes: T stands for the leading dims, [batch, length] in a dense forward and [tokens] in a paged
one; H, K are this rank's query and key/value heads, D is head_dim.
"""

from __future__ import annotations

import torch
from torch import nn

from assembler.blocks.attention_gate import GateSpec
from assembler.blocks.context import BuildContext, ForwardContext
from assembler.blocks.norms import NormSpec
from assembler.blocks.parallel import ShardDim
from assembler.blocks.position_scale import PositionScale, position_factors
from assembler.blocks.qk_norm import QKNormSpec
from assembler.blocks.rope import RopeSettings, RotaryEmbedding, apply_rotary, rotary_dim
from assembler.blocks.self_attention import Bound, Count, SelfAttention
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.fused import runs_fused
from assembler.kernels.head_steps import HeadSteps, Rotation, rope_store_kv, takes_one_pass


class RopeAttn(SelfAttention):
    """Multi-head attention with rotary positions (Vaswani et al., 2017; Su et al., 2021).

    Also without them, for models that add positions to their embeddings. Covers multi-head,
    grouped-query (Ainslie et al., 2023) and multi-query attention. Queries and keys are normed,
    clipped, rotated and scaled in this order (normed last with a QKNorm `after`); the heads'
    outputs are normed, gated and projected.

    Args:
        num_heads: Query heads of the whole model.
        num_kv_heads: Key/value heads; null means one for every query head (no grouping).
        head_dim: Width of a head; null means hidden_size / num_heads.
        qkv_bias: Whether the q, k and v projections add a bias (Qwen2).
        o_bias: Whether the output projection adds a bias.
        qk_norm: Norm block applied to queries and keys (Qwen3), or a QKNorm to say where and how.
        clip_qkv: Bound of queries, keys and values, to which they are clipped (OLMo, DBRX).
        rope: Settings of the rotary embedding; null means positions are not rotated (NoPE).
        position_scale: How queries grow with their position (Llama 4); null means not at all.
        window: Sliding window in tokens, the query's own included (Mistral); null means all.
        chunk: Tokens of a chunk; a query sees keys of its own chunk only (Llama 4); null means all.
        softcap: Bound of the scores, cap * tanh(score / cap), before the mask (Gemma 2).
        sinks: Whether each head has a learned score that takes its share of the softmax (gpt-oss).
        scale: Factor of the scores; null means 1 / sqrt(head_dim).
        out_norm: Norm block over the outputs of all heads, before the output projection (BitNet).
        gate: Gate block on the outputs of the heads, before the output projection (AFMoE).
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
        qk_norm: QKNormSpec | None = None,
        clip_qkv: Bound | None = None,
        rope: RopeSettings | None = None,
        position_scale: PositionScale | None = None,
        window: Count | None = None,
        chunk: Count | None = None,
        softcap: Bound | None = None,
        sinks: bool = False,
        scale: float | None = None,
        out_norm: NormSpec | None = None,
        gate: GateSpec | None = None,
    ) -> None:
        biases = {"qkv_bias": qkv_bias, "o_bias": o_bias}
        sizes = (num_heads, num_kv_heads, head_dim)
        super().__init__(ctx, *sizes, **biases, clip_qkv=clip_qkv, scale=scale)
        q, k = self.q_part, self.k_part
        self.window, self.chunk, self.softcap = window, chunk, softcap
        self.position_scale = position_scale
        self.qk_norm = self.q_norm = self.k_norm = None
        if qk_norm is not None:
            self.qk_norm = ctx.child(qk_norm, "qk_norm")
            self.q_norm, self.k_norm = (self.qk_norm.make(ctx, part) for part in (q, k))
        self.rope = None
        if rope is not None:
            self.rope = RotaryEmbedding(rope, rotary_dim(rope, self.head_dim, ctx.path))
        values = nn.Parameter(torch.empty(self.num_heads)) if sinks else None
        self.register_parameter("sinks", values)
        self.out_norm = None if out_norm is None else ctx.child(out_norm, "out_norm", part=q)
        self.gate = None if gate is None else ctx.child(gate, "gate", heads=q)

    def store(self, heads: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """Store the keys and values of a paged step's projections; its queries [T, H, D].

        On a GPU one kernel does this and what `prepare` does to the heads, where it knows it all.
        """
        k_cache, v_cache = ctx.kv_caches[self.cache_index]
        steps = self._steps(heads, ctx) if runs_fused(heads) else None
        if steps is None or not takes_one_pass(heads, k_cache, v_cache, steps):
            return super().store(heads, ctx)
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=-2)
        if self.qk_norm is not None and steps.norm is None:
            q, k = self.qk_norm(self.q_norm, q), self.qk_norm(self.k_norm, k)
        scales = (self.k_scale, self.v_scale)
        return rope_store_kv(q, k, v, k_cache, v_cache, ctx.paged.slot_mapping, steps, *scales)

    def _steps(self, heads: torch.Tensor, ctx: ForwardContext) -> HeadSteps | None:
        """What `prepare` does, but for a norm that has to be called before the rest.

        None: one has to be called after it, or there is next to nothing to do.
        """
        norm = None if self.qk_norm is None else self.qk_norm.of_heads(self.q_norm, self.k_norm)
        if self.qk_norm is not None and norm is None and self.qk_norm.after_rope:
            return None
        if self.rope is None and norm is None:
            return None
        rotation = factors = None
        if self.rope is not None:
            rotation = Rotation(*self.rope(ctx, heads.dtype), self.rope.style)
        if self.position_scale is not None:
            factors = position_factors(self.position_scale, ctx, heads.dtype)
        return HeadSteps(norm, self.clip_qkv, rotation, factors)

    def prepare(self, heads: torch.Tensor, ctx: ForwardContext) -> tuple[torch.Tensor, ...]:
        """[T, H + 2 K, D] -> normed, clipped, rotated and scaled q [T, H, D], k and v [T, K, D]."""
        num_q, num_kv = self.num_heads, self.num_kv_heads
        if self.qk_norm is None:  # q and k lie side by side: one rotation turns both
            qk, v = self.clip(heads).split((num_q + num_kv, num_kv), dim=-2)
            q, k = self._rotate(qk, ctx).split((num_q, num_kv), dim=-2)
        else:
            q, k, v = heads.split((num_q, num_kv, num_kv), dim=-2)
            q, k = self._turn(q, self.q_norm, ctx), self._turn(k, self.k_norm, ctx)
            v = self.clip(v)
        if self.position_scale is not None:
            q = q * position_factors(self.position_scale, ctx, q.dtype)
        return q, k, v

    def _turn(self, heads: torch.Tensor, norm: nn.Module, ctx: ForwardContext) -> torch.Tensor:
        """Queries or keys, normed on one side of clipping and rotation."""
        if self.qk_norm.after_rope:
            return self.qk_norm(norm, self._rotate(self.clip(heads), ctx))
        return self._rotate(self.clip(self.qk_norm(norm, heads)), ctx)

    def _rotate(self, heads: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        if self.rope is None:
            return heads
        cos, sin = self.rope(ctx, heads.dtype)
        return apply_rotary(heads, cos, sin, self.rope.style)

    def finish(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What the heads read, normed and gated."""
        if self.out_norm is not None:
            out = self.out_norm(out.flatten(-2)).view(out.shape)
        return out if self.gate is None else self.gate(x, out)

    def options(self) -> AttentionOptions:
        """What there is besides the softmax over q·k."""
        return AttentionOptions(
            scale=self.scale,
            window=self.window,
            chunk=self.chunk,
            softcap=self.softcap,
            sinks=self.sinks,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )

    def shard_dims(self) -> dict[str, ShardDim]:
        """The sinks go with their heads."""
        if self.sinks is None:
            return {}
        heads = self.q_part.whole_units()
        return {"sinks": ShardDim("column", (heads.size,), 0, (heads,))}
