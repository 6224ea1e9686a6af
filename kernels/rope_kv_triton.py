"""All that attention does to projected heads before it attends, as one Triton kernel.

A program takes a few heads of one token: of its queries, which it norms, rotates and writes in a
row; of its keys, which it norms, rotates and writes to their slot; or of its values. The heads are
read where the fused projection wrote them. Numbers are rounded where `rope_store_kv_torch` rounds
them, so half precision differs by the order of a norm's sum only.

The operation is `torch.ops.assembler.rope_store_kv`; it has no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.head_steps import HeadSteps
from assembler.kernels.norms_triton import num_warps
from assembler.kernels.rope_kv_tile import clipped, turned_heads
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
    HAS_CLIP: tl.constexpr,
    HEADS: tl.constexpr,  # a program
    BLOCK_D: tl.constexpr,  # power of two >= DIM
):
    """The programs of a token: HEADS of its queries each, then of its keys, then of its values."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    q_groups: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    kv_groups: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    lanes = tl.arange(0, BLOCK_D)[None, :]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    if group < q_groups:
        heads = (group * HEADS + tl.arange(0, HEADS))[:, None]
        live = heads < NUM_HEADS
        x = turned_heads(
            q_ptr + token * q_stride, q_weight_ptr, q_bias_ptr, cos_ptr, sin_ptr, token, heads,
            live, clip, eps, DIM, ROTARY_DIM, INTERLEAVED, NORM, LAYER, OFFSET, EACH_HEAD,
            HAS_CLIP, BLOCK_D,
        )  # fmt: skip
        if q_factors_ptr is not None:
            x *= tl.load(q_factors_ptr + token).to(tl.float32)
        target = out_ptr + token * (NUM_HEADS * DIM) + heads * DIM + lanes
        tl.store(target, x.to(dtype), mask=live & (lanes < DIM))
    else:
        slot = tl.load(slot_mapping_ptr + token)
        num_stored = tl.where(slot < 0, 0, NUM_KV_HEADS)
        row = slot * (NUM_KV_HEADS * DIM)
        if group < q_groups + kv_groups:
            heads = ((group - q_groups) * HEADS + tl.arange(0, HEADS))[:, None]
            live = heads < num_stored
            x = turned_heads(
                k_ptr + token * k_stride, k_weight_ptr, k_bias_ptr, cos_ptr, sin_ptr, token, heads,
                live, clip, eps, DIM, ROTARY_DIM, INTERLEAVED, NORM, LAYER, OFFSET, EACH_HEAD,
                HAS_CLIP, BLOCK_D,
            )  # fmt: skip
            target = k_cache_ptr + row + heads * DIM + lanes
            tl.store(target, x.to(dtype), mask=live & (lanes < DIM))
        else:
            heads = ((group - q_groups - kv_groups) * HEADS + tl.arange(0, HEADS))[:, None]
            mask = (heads < num_stored) & (lanes < DIM)
            x = tl.load(v_ptr + token * v_stride + heads * DIM + lanes, mask=mask, other=0.0)
            x = clipped(x.to(tl.float32), clip, HAS_CLIP, dtype)
            target = v_cache_ptr + row + heads * DIM + lanes
            tl.store(target, x.to(dtype), mask=mask)


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
) -> torch.Tensor:
    """`rope_store_kv_torch` with its `HeadSteps` spread out -> queries [T, H, D], contiguous.

    Args:
        q: [T, H, D]; k, v: [T, K, D]; heads contiguous, tokens at any stride, one dtype.
        k_cache, v_cache: [P, page_size, K, D], contiguous, in that dtype.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
        norm: "none", "before" or "after" the rotation.
    """
    (num_tokens, num_heads, dim), num_kv_heads = q.shape, k.shape[1]
    assert k.shape == v.shape and k_cache.shape == v_cache.shape
    assert k_cache.is_contiguous() and v_cache.is_contiguous()
    out = q.new_empty(q.shape)
    if num_tokens == 0:
        return out
    q, k, v = (_packed_heads(heads) for heads in (q, k, v))
    block_d = triton.next_power_of_2(dim)
    most = triton.next_power_of_2(max(num_heads, num_kv_heads))
    heads = max(1, min(_TILE // block_d, most))
    groups = triton.cdiv(num_heads, heads) + 2 * triton.cdiv(num_kv_heads, heads)
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
        EACH_HEAD=leaf is not None and leaf.dim() > 1,
        HAS_CLIP=clip is not None,
        HEADS=heads,
        BLOCK_D=block_d,
        num_warps=num_warps(heads * block_d),
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
) -> torch.Tensor:
    """Same contract as `rope_store_kv_torch`; what `fuses` says this kernel takes."""
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
    )


def _packed_heads(heads: torch.Tensor) -> torch.Tensor:
    """[T, heads, D] whose tokens may be apart, but not its heads; mostly as it is."""
    packed = heads.stride(2) == 1 and heads.stride(1) == heads.shape[2]
    return heads if packed else heads.contiguous()
