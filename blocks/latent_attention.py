"""Attention whose keys and values are kept as one small latent a token (DeepSeek-V2).

Shapes: T stands for the leading dims, [batch, length] in a dense forward and [tokens] in a paged
one; H are this rank's heads, R is kv_lora_rank.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.context import BuildContext, CacheSpec, ForwardContext
from assembler.blocks.linear import ColumnLinear, ReplicatedLinear, RowLinear
from assembler.blocks.norms import LayerNorm, NormSpec, norm_fuses
from assembler.blocks.parallel import Part
from assembler.blocks.position_scale import PositionScale, position_factors
from assembler.blocks.rope import RopeSettings, RotaryEmbedding, apply_rotary, rotary_dim
from assembler.blocks.rope_frequencies import score_factor
from assembler.errors import SpecError
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dense_attention import dense_attention
from assembler.kernels.fused import runs_fused
from assembler.kernels.head_steps import Rotation
from assembler.kernels.latent_kv import LatentNorm, latent_store_kv, takes_one_pass
from assembler.kernels.traced import is_traced

Size = Annotated[int, Field(gt=0)]


class LatentAttn(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    Keys and values are projected from a normed latent of each token. A head's query and key have a
    part without positions and a rotated one; the rotated part of the key is alike for all heads. A
    paged pass caches the latent and the rotated key alone: it multiplies the queries by the keys'
    projection and what attention read by the values', which gives what the dense forward gives.

    Args:
        num_heads: Heads of the whole model.
        q_lora_rank: Width of the latent that queries come from; null means of the stream itself.
        kv_lora_rank: Width of the latent that keys and values come from.
        nope_head_dim: Width of a head's query and key without positions (`qk_nope_head_dim`).
        rope_head_dim: Width of a head's query and key that is rotated (`qk_rope_head_dim`).
        v_head_dim: Width of a head's value.
        norm: Norm block over either latent; mostly with an eps of its own, 1e-6.
        bias: Whether the projections to latents and the output projection add a bias.
        rope: Settings of the rotary embedding; null means positions are not rotated (NoPE).
        position_scale: How queries grow with their position (Mistral 4); null means not at all.
        scale: Factor of the scores; null means 1 / sqrt(nope_head_dim + rope_head_dim), times what
            yarn's mscale_all_dim makes of it.
    """

    role: ClassVar[str] = "attention"
    cache_index: int  # which of a pass's kv_caches is this block's; the model's builder counts them
    k_scale: float = 1.0  # what 1 in a cache of 8 bits stands for, as the checkpoint says

    def __init__(
        self,
        ctx: BuildContext,
        *,
        num_heads: Size,
        q_lora_rank: Size | None = None,
        kv_lora_rank: Size,
        nope_head_dim: Size,
        rope_head_dim: Size,
        v_head_dim: Size,
        norm: NormSpec,
        bias: bool = False,
        rope: RopeSettings | None = None,
        position_scale: PositionScale | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.head_dim = kv_lora_rank, nope_head_dim + rope_head_dim
        self.nope_dim, self.rope_dim, self.v_dim = nope_head_dim, rope_head_dim, v_head_dim
        self.scale = self.head_dim**-0.5 * score_factor(rope) if scale is None else scale
        self.position_scale = position_scale

        def heads(name: str, dim: int) -> Part:
            return Part(name, num_heads * dim, unit=dim)

        def per_head(name: str, width: int, *parts: Part) -> ColumnLinear:
            return ColumnLinear(width, parts, False, ctx.tp, f"{ctx.path}.{name}")

        q = heads("q", self.head_dim)
        self.q = self.q_a = self.q_a_norm = self.q_b = None
        if q_lora_rank is None:
            self.q = per_head("q", ctx.hidden_size, q)
        else:
            self.q_a = ReplicatedLinear(ctx.hidden_size, (Part("latent", q_lora_rank),), bias)
            self.q_a_norm = ctx.child(norm, "q_a_norm", width=q_lora_rank)
            self.q_b = per_head("q_b", q_lora_rank, q)
        latent, rotated = Part("latent", kv_lora_rank), Part("rope", rope_head_dim, rope_head_dim)
        self.kv_a = ReplicatedLinear(ctx.hidden_size, (latent, rotated), bias)
        self.kv_a_norm = ctx.child(norm, "kv_a_norm", width=kv_lora_rank)
        v = heads("v", v_head_dim)
        self.kv_b = per_head("kv_b", kv_lora_rank, heads("k", nope_head_dim), v)
        self.o = RowLinear(v, ctx.hidden_size, bias, ctx.tp, f"{ctx.path}.o")
        self.num_heads = self.kv_b.local_sizes[1] // v_head_dim
        self.rope = None
        if rope is not None:
            dim = _rotated_dim(rope, nope_head_dim, rope_head_dim, ctx.path)
            self.rope = RotaryEmbedding(rope, dim)

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; in a paged pass also stores the tokens' latents."""
        q, kv = self._queries(x, ctx), self.kv_a(x)
        rotation = None
        if self.rope is not None:
            rotation = Rotation(*self.rope(ctx, kv.dtype), self.rope.style)
        if ctx.paged is None:
            out = self._attend_dense(q, kv, rotation)
        else:
            out = self._attend_paged(q, kv, rotation, ctx)
        return self.o(out.flatten(-2))

    def _queries(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """The queries of all heads [T, H, nope + rope], not yet rotated."""
        q = self.q(x) if self.q is not None else self.q_b(self.q_a_norm(self.q_a(x)))
        q = q.unflatten(-1, (self.num_heads, self.head_dim))
        if self.position_scale is None:
            return q
        return q * position_factors(self.position_scale, ctx, q.dtype)

    def _attend_dense(
        self, q: torch.Tensor, kv: torch.Tensor, rotation: Rotation | None
    ) -> torch.Tensor:
        """Attention of every head over keys and values of its own -> [T, H, v_head_dim]."""
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        latent, k_rope = self._normed(kv, rotation)
        k_nope, v = self.kv_b(latent).split(self.kv_b.local_sizes, dim=-1)
        k_nope = k_nope.unflatten(-1, (self.num_heads, -1))
        k = torch.cat((k_nope, k_rope.expand(*k_nope.shape[:-1], -1)), dim=-1)
        q = torch.cat((q_nope, _rotated(q_rope, rotation)), dim=-1)
        v = v.unflatten(-1, (self.num_heads, -1))
        return dense_attention(q, k, v, AttentionOptions(scale=self.scale))

    def _normed(
        self, kv: torch.Tensor, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """kv [T, R + rope] -> the latent [T, R] normed, and the key of all heads [T, 1, rope]."""
        latent, k_rope = kv.split((self.rank, self.rope_dim), dim=-1)
        return self.kv_a_norm(latent), _rotated(k_rope.unsqueeze(-2), rotation)

    def _attend_paged(
        self, q: torch.Tensor, kv: torch.Tensor, rotation: Rotation | None, ctx: ForwardContext
    ) -> torch.Tensor:
        """Attention of all heads over the cached latents, projected back -> [T, H, v_head_dim]."""
        to_keys, to_values = self.kv_b.weight.split(self.kv_b.local_sizes)
        to_keys = to_keys.view(self.num_heads, self.nope_dim, self.rank)
        to_values = to_values.view(self.num_heads, self.v_dim, self.rank)
        k_cache, _ = ctx.kv_caches[self.cache_index]
        q = self._store(q, kv, to_keys, rotation, ctx)
        scales = {"k_scale": self.k_scale, "v_scale": self.k_scale}
        options = AttentionOptions(scale=self.scale, value_dim=self.rank, **scales)
        read = ctx.attention.attend(q, k_cache, None, ctx.paged, options)
        return _per_head(read, to_values.transpose(1, 2))

    def _store(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        to_keys: torch.Tensor,
        rotation: Rotation | None,
        ctx: ForwardContext,
    ) -> torch.Tensor:
        """Store a step's latents and keys; the queries that read them, [T, H, R + rope].

        On a GPU one kernel norms, rotates, joins and stores, where it knows the norm.
        """
        slots, (k_cache, _) = ctx.paged.slot_mapping, ctx.kv_caches[self.cache_index]
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        norm = _latent_norm(self.kv_a_norm) if runs_fused(kv, q, to_keys) else None
        if norm is not None and takes_one_pass(q, kv, k_cache, norm, rotation):
            queries = q.new_empty(*q.shape[:-1], self.rank + self.rope_dim)
            _per_head_into(queries[..., : self.rank], q_nope, to_keys)
            latent_store_kv(q_rope, queries, kv, k_cache, slots, norm, rotation, self.k_scale)
            return queries
        latent, k_rope = self._normed(kv, rotation)
        k = torch.cat((latent.unsqueeze(-2), k_rope), dim=-1)
        ctx.attention.store_kv(k, None, k_cache, None, slots, self.k_scale)
        return torch.cat((_per_head(q_nope, to_keys), _rotated(q_rope, rotation)), dim=-1)

    def cached_parts(self) -> dict[str, tuple[str, str]]:
        """(parameter, part) that makes what is cached, by kind; the values are a part of the keys.

        Checkpoints may hold a scale for both.
        """
        return {"k": ("kv_a.weight", "latent"), "v": ("kv_a.weight", "latent")}

    def cache_spec(self) -> CacheSpec:
        """The memory this block needs: a latent and a rotated key for each token."""
        return CacheSpec(1, self.rank + self.rope_dim, value_dim=self.rank, latent=True)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, scale={self.scale:.6g}"


def _rotated(heads: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
    if rotation is None:
        return heads
    return apply_rotary(heads, rotation.cos, rotation.sin, rotation.style)


def _latent_norm(norm: nn.Module) -> LatentNorm | None:
    """A norm as a fused kernel takes it; None: it has to be called."""
    if not norm_fuses(norm):
        return None
    layer_norm = isinstance(norm, LayerNorm)
    return LatentNorm(layer_norm, norm.eps, norm.offset, norm.weight, norm.bias)


def _per_head_into(out: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
    """`_per_head(x, weights)`, written to out [T, H, B] without a copy where nobody traces."""
    if is_traced(x):
        out.copy_(_per_head(x, weights))
    else:
        torch.bmm(x.transpose(0, 1), weights, out=out.transpose(0, 1))


def _per_head(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x [T, H, A] times weights [H, A, B] -> [T, H, B]."""
    return torch.bmm(x.transpose(0, 1), weights).transpose(0, 1)


def _rotated_dim(rope: RopeSettings, nope: int, rotated: int, path: str) -> int:
    """How many dimensions turn: all that have a position.

    Configs that give the share which turns (Mistral 4) count it of both parts of a head together.
    """
    if rope.partial != 1 and int((nope + rotated) * rope.partial) != rotated:
        raise SpecError(
            f"{path}: partial {rope.partial} does not fit rope_head_dim {rotated}, all of which "
            f"is rotated: that is {rotated / (nope + rotated):.6g} of a head"
        )
    return rotary_dim(rope.model_copy(update={"partial": 1.0}), rotated, path)
