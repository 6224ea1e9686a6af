"""Writing the keys and values of a step into paged KV memory, as one Triton kernel.

Same contract as `store_kv_torch`, without its look at the slots from the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.fp8 import E4M3, to_e4m3


@triton.jit
def _copy_token(
    source_ptr,
    target_ptr,
    head_stride,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy [HEADS, DIM] values: heads `head_stride` apart in the source, packed in the target."""
    lanes = tl.arange(0, BLOCK)
    live = lanes < HEADS * DIM
    values = tl.load(source_ptr + lanes // DIM * head_stride + lanes % DIM, mask=live)
    if target_ptr.dtype.element_ty == tl.uint8:  # the bits of e4m3
        values = to_e4m3(tl.div_rn(values.to(tl.float32), scale + tl.zeros([BLOCK], tl.float32)))
    tl.store(target_ptr + lanes, values, mask=live)


@triton.jit
def store_kv_kernel(
    k_ptr,  # [T, K, D]
    v_ptr,  # [T, K, Dv]; not read when HEAD_DIM_V is 0
    k_cache_ptr,  # [P, page_size, K, D]
    v_cache_ptr,  # [P, page_size, K, Dv]
    slot_mapping_ptr,  # [T] int64
    k_scale,  # what 1 in caches of 8 bits stands for
    v_scale,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_K: tl.constexpr,  # power of two >= K * D
    BLOCK_V: tl.constexpr,  # power of two >= K * Dv
):
    """One program stores one token."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    if slot < 0:
        return
    k_target = k_cache_ptr + slot * (NUM_KV_HEADS * HEAD_DIM)
    k_source = k_ptr + token * k_token_stride
    _copy_token(k_source, k_target, k_head_stride, k_scale, NUM_KV_HEADS, HEAD_DIM, BLOCK_K)
    if HEAD_DIM_V > 0:
        v_target = v_cache_ptr + slot * (NUM_KV_HEADS * HEAD_DIM_V)
        v_source = v_ptr + token * v_token_stride
        _copy_token(v_source, v_target, v_head_stride, v_scale, NUM_KV_HEADS, HEAD_DIM_V, BLOCK_V)


def store_kv_triton(
    k: torch.Tensor,
    v: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Write token t's key and value into slot `slot_mapping[t]` of the caches, in place.

    Args:
        k: [T, K, D], the last dim contiguous.
        v: [T, K, Dv], the last dim contiguous; None, like v_cache, where the values are a part of
            the keys.
        k_cache: [P, page_size, K, D], contiguous.
        v_cache: [P, page_size, K, Dv], contiguous.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
        k_scale, v_scale: what 1 in caches of float8 e4m3 stands for (see `store_kv_torch`).
    """
    assert (v is None) == (v_cache is None)
    num_tokens, num_kv_heads, head_dim = k.shape
    head_dim_v = 0 if v is None else v.shape[2]
    if v is None:
        v, v_cache = k, k_cache  # pointers that are not read
    assert k.stride(2) == 1 and v.stride(2) == 1, (k.stride(), v.stride())
    assert k_cache.is_contiguous() and v_cache.is_contiguous()
    if num_tokens == 0:
        return
    if k_cache.dtype == E4M3:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    store_kv_kernel[(num_tokens,)](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        k_scale,
        v_scale,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HEAD_DIM_V=head_dim_v,
        BLOCK_K=triton.next_power_of_2(num_kv_heads * head_dim),
        BLOCK_V=triton.next_power_of_2(max(1, num_kv_heads * head_dim_v)),
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
