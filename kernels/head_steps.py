"""What attention does to the projected heads of a step before it attends, and who does it where.

Queries and keys are normed, clipped, rotated and scaled; keys and values go to their slots of the
paged KV memory.

Shapes: T tokens of the step, H and K query and key/value heads, D head_dim, P pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from assembler.kernels.fused import runs_fused
from assembler.kernels.norms_torch import layer_norm_torch, rms_norm_torch
from assembler.kernels.rotary import apply_rotary
from assembler.kernels.store_kv_torch import store_kv_torch

MOST_AT_ONCE = 8192
"""Numbers of a token's queries that a program keeps in registers, where a norm spans all heads."""


@dataclass(frozen=True)
class HeadNorm:
    """The norm of the heads of queries and keys, each [D], or [H, D] and [K, D]; None: no leaf.

    With `all_heads` one norm spans all heads of the queries, one those of the keys; leaves are then
    [H * D] and [K * D].
    """

    layer_norm: bool  # LayerNorm, else RMSNorm
    eps: float
    offset: int
    q_weight: torch.Tensor | None
    k_weight: torch.Tensor | None
    q_bias: torch.Tensor | None = None
    k_bias: torch.Tensor | None = None
    after_rope: bool = False
    all_heads: bool = False

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H, D], normed."""
        return self._of(x, self.q_weight, self.q_bias)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K, D], normed."""
        return self._of(x, self.k_weight, self.k_bias)

    def _of(self, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None):
        rows = x.flatten(-2) if self.all_heads else x
        if self.layer_norm:
            return layer_norm_torch(rows, weight, bias, self.eps, self.offset).view(x.shape)
        return rms_norm_torch(rows, weight, self.eps, self.offset).view(x.shape)


@dataclass(frozen=True)
class Rotation:
    """What `apply_rotary` takes: cos and sin [T, 1, dim] in the dtype of the heads."""

    cos: torch.Tensor
    sin: torch.Tensor
    style: Literal["half", "half_reversed", "interleaved"] = "half"


@dataclass(frozen=True)
class HeadSteps:
    """What is done to projected heads; None: not."""

    norm: HeadNorm | None = None
    clip: float | None = None  # bound of queries, keys and values
    rotation: Rotation | None = None
    q_factors: torch.Tensor | None = None  # [T, 1, 1], multiply the queries


def rope_store_kv_torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    steps: HeadSteps,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """Do the steps, store keys and values in place, and give the queries, [T, H, D].

    Args:
        q: [T, H, D].
        k, v: [T, K, D].
        k_cache, v_cache: [P, page_size, K, D], contiguous.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
        k_scale, v_scale: what 1 in caches of float8 e4m3 stands for (see `store_kv_torch`).
    """
    norm, rotation, clip = steps.norm, steps.rotation, steps.clip
    if norm is not None and not norm.after_rope:
        q, k = norm.queries(q), norm.keys(k)
    if clip is not None:
        q, k, v = (heads.clamp(-clip, clip) for heads in (q, k, v))
    if rotation is not None:
        q, k = (apply_rotary(x, rotation.cos, rotation.sin, rotation.style) for x in (q, k))
    if norm is not None and norm.after_rope:
        q, k = norm.queries(q), norm.keys(k)
    store_kv_torch(k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale)
    return q if steps.q_factors is None else q * steps.q_factors


def rope_store_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    steps: HeadSteps,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """`rope_store_kv_torch` in one pass, where `takes_one_pass`."""
    # Triton is imported by those who use it only: it is not there on every platform.
    from assembler.kernels.rope_kv_triton import rope_store_kv_triton

    scales = (k_scale, v_scale)
    return rope_store_kv_triton(q, k, v, k_cache, v_cache, slot_mapping, steps, *scales)


def takes_one_pass(
    heads: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor | None, steps: HeadSteps
) -> bool:
    """Whether one kernel does all of it for projected `heads` and these caches (see `fused`)."""
    if v_cache is None or k_cache.dtype != v_cache.dtype:
        return False
    if k_cache.dtype not in (heads.dtype, torch.float8_e4m3fn):
        return False
    norm, rotation = steps.norm, steps.rotation
    leaves = (norm.q_weight, norm.k_weight, norm.q_bias, norm.k_bias) if norm else ()
    tables = (rotation.cos, rotation.sin) if rotation else ()
    return runs_fused(heads, *leaves, *tables, steps.q_factors)
