"""All that attention does to projected heads before it attends, as one Triton kernel.

A program takes a few heads of one token: of its queries, which it norms, rotates and writes in a
row; of its keys, which it norms, rotates and writes to their slot; or of its values. The heads are
read where the fused projection wrote them. Where one norm spans all heads, a program has them all.
Numbers are rounded where `rope_store_kv_torch` rounds them, so half precision differs by the order
of a norm's sum only; caches of 8 bits get e4m3 (`fp8`).

The operation is `torch.ops.assembler.rope_store_kv`; it has no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.fp8 import E4M3
from assembler.kernels.head_steps import HeadSteps
from assembler.kernels.norms_triton import num_warps
from assembler.kernels.rope_kv_tile import clipped, to_cache, turned_heads
from assembler.kernels.traced import operation

_TILE = 1024  # numbers a program takes


@triton.jit
def rope_kv_kernel(
    out_ptr,  # [T, H, D]
    k_cache_ptr,  # [slots, K, D]
    v_cache_ptr,  # [slots, K, D]
    q_ptr,  # [T, H, D], tokens at a stride
    k_ptr,  # [T, K, D]
    v_ptr,  # [T, K, D]
    slot_mapping_ptr,  # [T] int64
    cos_ptr,  # [T, ROTARY_DIM] or None
    sin_ptr,
    q_weight_ptr,  # [D], [H, D] (EACH_HEAD) or None
    k_weight_ptr,  # [D], [K, D] or None
    q_bias_ptr,
    k_bias_ptr,
    q_factors_ptr,  # [T] or None
    k_scale,  # what 1 in caches of 8 bits stands for
    v_scale,
    q_stride,
    k_stride,
    v_stride,
    clip,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    LAYER: tl.constexpr,
    OFFSET: tl.constexpr,
    EACH_HEAD: tl.constexpr,
    ALL_HEADS: tl.constexpr,  # a norm spans all heads: one program has them all
    HAS_CLIP: tl.constexpr,
    Q_HEADS: tl.constexpr,  # queries a program
    K_HEADS: tl.constexpr,
    V_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,  # power of two >= DIM
):
    """The programs of a token: Q_HEADS of its queries each, then keys, then values."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    q_groups: tl.constexpr = (NUM_HEADS + Q_HEADS - 1) // Q_HEADS
    k_groups: tl.constexpr = (NUM_KV_HEADS + K_HEADS - 1) // K_HEADS
    lanes = tl.arange(0, BLOCK_D)[None, :]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    cache_dtype: tl.constexpr = k_cache_ptr.dtype.element_ty
    # Triton wants a name to have one shape and type in all branches: each has names of its own.
    if group < q_groups:
        q_heads = (group * Q_HEADS + tl.arange(0, Q_HEADS))[:, None]
        q_live = q_heads < NUM_HEADS
        q = turned_heads(
            q_ptr + token * q_stride, q_weight_ptr, q_bias_ptr, cos_ptr, sin_ptr, token, q_heads,
            q_live, clip, eps, DIM, DIM, ROTARY_DIM, INTERLEAVED, NORM, LAYER, OFFSET, EACH_HEAD,
            NUM_HEADS * DIM if ALL_HEADS else DIM, HAS_CLIP, BLOCK_D,
        )  # fmt: skip
        if q_factors_ptr is not None:
            q *= tl.load(q_factors_ptr + token).to(tl.float32)
        out = out_ptr + token * (NUM_HEADS * DIM) + q_heads * DIM + lanes
        tl.store(out, q.to(dtype), mask=q_live & (lanes < DIM))
    else:
        slot = tl.load(slot_mapping_ptr + token)
        num_stored = tl.where(slot < 0, 0, NUM_KV_HEADS)
        row = slot * (NUM_KV_HEADS * DIM)
        if group < q_groups + k_groups:
            k_heads = ((group - q_groups) * K_HEADS + tl.arange(0, K_HEADS))[:, None]
            k_live = k_heads < num_stored
            k = turned_heads(
                k_ptr + token * k_stride, k_weight_ptr, k_bias_ptr, cos_ptr, sin_ptr, token,
                k_heads, k_live, clip, eps, DIM, DIM, ROTARY_DIM, INTERLEAVED, NORM, LAYER, OFFSET,
                EACH_HEAD, NUM_KV_HEADS * DIM if ALL_HEADS else DIM, HAS_CLIP, BLOCK_D,
            )  # fmt: skip
            k_kept = to_cache(k, k_scale, dtype, cache_dtype)
            k_target = k_cache_ptr + row + k_heads * DIM + lanes
            tl.store(k_target, k_kept, mask=k_live & (lanes < DIM))
        else:
            v_heads = ((group - q_groups - k_groups) * V_HEADS + tl.arange(0, V_HEADS))[:, None]
            v_mask = (v_heads < num_stored) & (lanes < DIM)
            source = v_ptr + token * v_stride + v_heads * DIM + lanes
            v = tl.load(source, mask=v_mask, other=0.0).to(tl.float32)
            v_kept = to_cache(clipped(v, clip, HAS_CLIP, dtype), v_scale, dtype, cache_dtype)
            tl.store(v_cache_ptr + row + v_heads * DIM + lanes, v_kept, mask=v_mask)


@operation("assembler::rope_store_kv", mutates_args=("k_cache", "v_cache"))
def rope_store_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    interleaved: bool,
    norm: str,
    layer_norm: bool,
    eps: float,
    offset: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    q_bias: torch.Tensor | None,
    k_bias: torch.Tensor | None,
    clip: float | None,
    q_factors: torch.Tensor | None,
    all_heads: bool,
    k_scale: float,
    v_scale: float,
) -> torch.Tensor:
    """`rope_store_kv_torch` with its `HeadSteps` spread out -> queries [T, H, D], contiguous.

    Args:
        q: [T, H, D]; k, v: [T, K, D]; heads contiguous, tokens at any stride, one dtype.
        k_cache, v_cache: [P, page_size, K, D], contiguous, in that dtype or float8 e4m3.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
        norm: "none", "before" or "after" the rotation.
        all_heads: whether one norm spans all heads; weights and biases are then [H * D], [K * D].
    """
    (num_tokens, num_heads, dim), num_kv_heads = q.shape, k.shape[1]
    assert k.shape == v.shape and k_cache.shape == v_cache.shape
    assert k_cache.is_contiguous() and v_cache.is_contiguous()
    out = q.new_empty(q.shape)
    if num_tokens == 0:
        return out
    q, k, v = (_packed_heads(heads) for heads in (q, k, v))
    if k_cache.dtype == E4M3:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    block_d = triton.next_power_of_2(dim)
    whole = [triton.next_power_of_2(n) for n in (num_heads, num_kv_heads)]
    heads = max(1, min(_TILE // block_d, max(whole)))
    q_heads, k_heads = whole if all_heads else (heads, heads)
    groups = triton.cdiv(num_heads, q_heads)
    groups += triton.cdiv(num_kv_heads, k_heads) + triton.cdiv(num_kv_heads, heads)
    leaf = q_bias if q_weight is None else q_weight
    rope_kv_kernel[(num_tokens, groups)](
        out,
        k_cache,
        v_cache,
        q,
        k,
        v,
        slot_mapping,
        None if cos is None else cos.contiguous(),
        None if sin is None else sin.contiguous(),
        q_weight,
        k_weight,
        q_bias,
        k_bias,
        q_factors,
        k_scale,
        v_scale,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        0.0 if clip is None else clip,
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        DIM=dim,
        ROTARY_DIM=0 if cos is None else cos.shape[-1],
        INTERLEAVED=interleaved,
        NORM=norm,
        LAYER=layer_norm,
        OFFSET=offset,
        EACH_HEAD=all_heads or (leaf is not None and leaf.dim() > 1),
        ALL_HEADS=all_heads,
        HAS_CLIP=clip is not None,
        Q_HEADS=q_heads,
        K_HEADS=k_heads,
        V_HEADS=heads,
        BLOCK_D=block_d,
        num_warps=num_warps(max(q_heads, k_heads, heads) * block_d),
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
    return out


@rope_store_kv.register_fake
def _(q, *_):
    return q.new_empty(q.shape)


def rope_store_kv_triton(
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
    """Same contract as `rope_store_kv_torch`, for what `takes_one_pass`."""
    norm, rotation = steps.norm, steps.rotation
    about = (False, 0.0, 0, None, None, None, None)
    position = "none"
    if norm is not None:
        about = (norm.layer_norm, norm.eps, norm.offset)
        about += (norm.q_weight, norm.k_weight, norm.q_bias, norm.k_bias)
        position = "after" if norm.after_rope else "before"
    return rope_store_kv(
        q,
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        None if rotation is None else rotation.cos,
        None if rotation is None else rotation.sin,
        rotation is not None and rotation.style == "interleaved",
        position,
        *about,
        steps.clip,
        steps.q_factors,
        norm is not None and norm.all_heads,
        k_scale,
        v_scale,
    )


def _packed_heads(heads: torch.Tensor) -> torch.Tensor:
    """[T, heads, D] whose tokens may be apart, but not its heads; mostly as it is."""
    packed = heads.stride(2) == 1 and heads.stride(1) == heads.shape[2]
    return heads if packed else heads.contiguous()
