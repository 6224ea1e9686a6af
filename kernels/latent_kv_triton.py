"""All that latent attention does to its projections before it attends, as one Triton kernel.

One program of a token norms its latent, rotates the key that all heads share and writes both to
their slot; the others rotate the queries of some heads, and write them behind what these read the
latents by. Numbers are rounded where `latent_store_kv_torch` rounds them.

The operation is `torch.ops.assembler.latent_store_kv`; it has no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.fp8 import E4M3
from assembler.kernels.head_steps import Rotation
from assembler.kernels.latent_kv import LatentNorm
from assembler.kernels.norms_triton import mean_and_rstd, num_warps, weighed
from assembler.kernels.rope_kv_tile import to_cache, turned_heads
from assembler.kernels.traced import operation

_TILE = 1024  # numbers of queries a program takes


@triton.jit
def latent_kv_kernel(
    q_ptr,  # [T, H, ROPE_DIM], tokens and heads at strides
    queries_ptr,  # [T, H, RANK + ROPE_DIM]
    kv_ptr,  # [T, RANK + ROPE_DIM], tokens at a stride
    k_cache_ptr,  # [slots, RANK + ROPE_DIM]
    slot_mapping_ptr,  # [T] int64
    cos_ptr,  # [T, ROPE_DIM] or None
    sin_ptr,
    weight_ptr,  # [RANK] or None
    bias_ptr,
    k_scale,  # what 1 in a cache of 8 bits stands for
    q_stride,
    kv_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    ROTATED: tl.constexpr,  # ROPE_DIM; 0: positions are not rotated
    INTERLEAVED: tl.constexpr,
    LAYER: tl.constexpr,
    OFFSET: tl.constexpr,
    HEADS: tl.constexpr,  # a program
    BLOCK_RANK: tl.constexpr,  # powers of two >= RANK and ROPE_DIM
    BLOCK_ROPE: tl.constexpr,
):
    """The programs of a token: what is stored, then HEADS of its queries each."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    width: tl.constexpr = RANK + ROPE_DIM
    dtype: tl.constexpr = kv_ptr.dtype.element_ty
    cache_dtype: tl.constexpr = k_cache_ptr.dtype.element_ty
    lanes = tl.arange(0, BLOCK_ROPE)[None, :]
    # Triton wants a name to have one shape and type in all branches: each has names of its own.
    if group == 0:
        slot = tl.load(slot_mapping_ptr + token)
        num_stored = tl.where(slot < 0, 0, 1)
        row = k_cache_ptr + slot * width
        columns = tl.arange(0, BLOCK_RANK)[None, :]
        mask = columns < num_stored * RANK
        x = tl.load(kv_ptr + token * kv_stride + columns, mask=mask, other=0.0).to(tl.float32)
        mean, rstd = mean_and_rstd(x, mask, eps, RANK, LAYER)
        x = (x - mean) * rstd
        x = weighed(x, weight_ptr, bias_ptr, columns, mask, dtype, LAYER, OFFSET).to(tl.float32)
        tl.store(row + columns, to_cache(x, k_scale, dtype, cache_dtype), mask=mask)
        one = tl.arange(0, 1)[:, None]
        k = turned_heads(
            kv_ptr + token * kv_stride + RANK, None, None, cos_ptr, sin_ptr, token, one,
            one < num_stored, 0.0, 0.0, ROPE_DIM, ROPE_DIM, ROTATED, INTERLEAVED, "none", False,
            0, False, ROPE_DIM, False, BLOCK_ROPE,
        )  # fmt: skip
        k = to_cache(k, k_scale, dtype, cache_dtype)
        tl.store(row + RANK + lanes, k, mask=lanes < num_stored * ROPE_DIM)
    else:
        heads = ((group - 1) * HEADS + tl.arange(0, HEADS))[:, None]
        live = heads < NUM_HEADS
        q = turned_heads(
            q_ptr + token * q_stride, None, None, cos_ptr, sin_ptr, token, heads, live, 0.0, 0.0,
            ROPE_DIM, HEAD_STRIDE, ROTATED, INTERLEAVED, "none", False, 0, False, ROPE_DIM, False,
            BLOCK_ROPE,
        )  # fmt: skip
        target = queries_ptr + token * (NUM_HEADS * width) + heads * width + RANK + lanes
        tl.store(target, q.to(dtype), mask=live & (lanes < ROPE_DIM))


@operation("assembler::latent_store_kv", mutates_args=("queries", "k_cache"))
def launch_latent_kv(
    q_rope: torch.Tensor,
    queries: torch.Tensor,
    kv: torch.Tensor,
    k_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    interleaved: bool,
    layer_norm: bool,
    eps: float,
    offset: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    k_scale: float,
) -> None:
    """`latent_store_kv_torch` with its norm and rotation spread out.

    Args:
        q_rope: [T, H, E], the last dim contiguous.
        queries: [T, H, R + E], contiguous, in the same dtype.
        kv: [T, R + E], the last dim contiguous.
        k_cache: [P, page_size, 1, R + E], contiguous, in that dtype or float8 e4m3.
    """
    (num_tokens, num_heads, rope_dim), width = q_rope.shape, kv.shape[1]
    assert queries.shape == (num_tokens, num_heads, width) and k_cache.shape[2:] == (1, width)
    assert queries.is_contiguous() and k_cache.is_contiguous()
    assert q_rope.stride(2) == 1 and kv.stride(1) == 1
    if num_tokens == 0:
        return
    if k_cache.dtype == E4M3:
        k_cache = k_cache.view(torch.uint8)
    rank = width - rope_dim
    block_rank, block_rope = (triton.next_power_of_2(n) for n in (rank, rope_dim))
    heads = max(1, min(_TILE // block_rope, triton.next_power_of_2(num_heads)))
    latent_kv_kernel[(num_tokens, 1 + triton.cdiv(num_heads, heads))](
        q_rope,
        queries,
        kv,
        k_cache,
        slot_mapping,
        None if cos is None else cos.contiguous(),
        None if sin is None else sin.contiguous(),
        weight,
        bias,
        k_scale,
        q_rope.stride(0),
        kv.stride(0),
        eps,
        NUM_HEADS=num_heads,
        RANK=rank,
        ROPE_DIM=rope_dim,
        HEAD_STRIDE=q_rope.stride(1),
        ROTATED=0 if cos is None else rope_dim,
        INTERLEAVED=interleaved,
        LAYER=layer_norm,
        OFFSET=offset,
        HEADS=heads,
        BLOCK_RANK=block_rank,
        BLOCK_ROPE=block_rope,
        num_warps=num_warps(max(block_rank, heads * block_rope)),
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )


@launch_latent_kv.register_fake
def _(*_):
    return None


def latent_store_kv_triton(
    q_rope: torch.Tensor,
    queries: torch.Tensor,
    kv: torch.Tensor,
    k_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    norm: LatentNorm,
    rotation: Rotation | None,
    k_scale: float = 1.0,
) -> None:
    """Same contract as `latent_store_kv_torch`, for what `takes_one_pass`."""
    launch_latent_kv(
        q_rope,
        queries,
        kv,
        k_cache,
        slot_mapping,
        None if rotation is None else rotation.cos,
        None if rotation is None else rotation.sin,
        rotation is not None and rotation.style == "interleaved",
        norm.layer_norm,
        norm.eps,
        norm.offset,
        norm.weight,
        norm.bias,
        k_scale,
    )
