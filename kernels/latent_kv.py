"""What latent attention does to its projections before it attends, and who does it where.

The latent of each token is normed and the key that all heads share is rotated; both are one row of
the cache (DeepSeek-V2, arXiv 2405.04434). The rotated part of the queries joins the part that was
multiplied by the keys' projection.

Shapes: T tokens of the step, H query heads, R width of the latent, E of the rotated part, P pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assembler.kernels.fused import MAX_WIDTH, runs_fused
from assembler.kernels.head_steps import Rotation
from assembler.kernels.norms_torch import layer_norm_torch, rms_norm_torch
from assembler.kernels.rotary import apply_rotary
from assembler.kernels.store_kv_torch import store_kv_torch


@dataclass(frozen=True)
class LatentNorm:
    """The norm of the latent, with leaves [R]; None: there is none."""

    layer_norm: bool  # LayerNorm, else RMSNorm
    eps: float
    offset: int
    weight: torch.Tensor | None
    bias: torch.Tensor | None = None

    def __call__(self, latent: torch.Tensor) -> torch.Tensor:
        """latent [T, R], normed."""
        if self.layer_norm:
            return layer_norm_torch(latent, self.weight, self.bias, self.eps, self.offset)
        return rms_norm_torch(latent, self.weight, self.eps, self.offset)


def latent_store_kv_torch(
    q_rope: torch.Tensor,
    queries: torch.Tensor,
    kv: torch.Tensor,
    k_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    norm: LatentNorm,
    rotation: Rotation | None,
    k_scale: float = 1.0,
) -> None:
    """Store normed latents and rotated keys, and put the rotated queries behind the others.

    Args:
        q_rope: [T, H, E], the part of the queries that is rotated.
        queries: [T, H, R + E], contiguous; its last E numbers are written.
        kv: [T, R + E], latents and keys as they were projected.
        k_cache: [P, page_size, 1, R + E], contiguous.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
        rotation: of all E numbers; None: positions are not rotated.
        k_scale: what 1 in a cache of float8 e4m3 stands for (see `store_kv_torch`).
    """
    width = q_rope.shape[-1]
    latent, k_rope = kv.unsqueeze(-2).split((kv.shape[-1] - width, width), dim=-1)
    if rotation is not None:
        about = (rotation.cos, rotation.sin, rotation.style)
        q_rope, k_rope = (apply_rotary(x, *about) for x in (q_rope, k_rope))
    queries[..., -width:] = q_rope
    k = torch.cat((norm(latent), k_rope), dim=-1)
    store_kv_torch(k, None, k_cache, None, slot_mapping, k_scale)


def latent_store_kv(
    q_rope: torch.Tensor,
    queries: torch.Tensor,
    kv: torch.Tensor,
    k_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    norm: LatentNorm,
    rotation: Rotation | None,
    k_scale: float = 1.0,
) -> None:
    """`latent_store_kv_torch` in one pass, where `takes_one_pass`."""
    # Triton is imported by those who use it only: it is not there on every platform.
    from assembler.kernels.latent_kv_triton import latent_store_kv_triton

    latent_store_kv_triton(q_rope, queries, kv, k_cache, slot_mapping, norm, rotation, k_scale)


def takes_one_pass(
    q: torch.Tensor,
    kv: torch.Tensor,
    k_cache: torch.Tensor,
    norm: LatentNorm,
    rotation: Rotation | None,
) -> bool:
    """Whether one kernel does all of it for these projections and this cache (see `fused`)."""
    if k_cache.dtype not in (kv.dtype, torch.float8_e4m3fn) or kv.shape[-1] > MAX_WIDTH:
        return False
    tables = (rotation.cos, rotation.sin) if rotation else ()
    return runs_fused(kv, q, norm.weight, norm.bias, *tables)
