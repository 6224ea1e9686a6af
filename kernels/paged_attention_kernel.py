"""The Triton kernels of attention over paged KV memory; `paged_attention_triton` launches them."""

from __future__ import annotations

import triton
import triton.language as tl

from assembler.kernels.paged_attention_tile import (
    LOG2_E,
    alibi_bias,
    key_tiles,
    oldest_key,
    online_softmax,
    scaled_logits,
)


@triton.jit
def paged_attention_kernel(
    out_ptr,  # [T, H, SPLITS, Dv]; float32 when SPLITS > 1
    lse_ptr,  # [T, H, SPLITS] float32, log2 of the sum of exp; written when SPLITS > 1
    q_ptr,  # [T, H, D]
    k_cache_ptr,  # [P, PAGE_SIZE, K, D]
    v_cache_ptr,  # [P, PAGE_SIZE, K, Dv]; not read when LATENT
    page_table_ptr,  # [S, max_pages] int32
    cu_seqlens_q_ptr,  # [S + 1] int32
    context_lens_ptr,  # [S] int32
    sinks_ptr,  # [H]; read when SINKS
    slopes_ptr,  # [H]; read when ALIBI
    scale,
    q_token_stride,
    q_head_stride,
    page_table_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads a key/value head
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    LATENT: tl.constexpr,  # values are the first HEAD_DIM_V numbers of the keys
    WINDOW: tl.constexpr,  # 0: none
    CHUNK: tl.constexpr,  # 0: none
    SOFTCAP: tl.constexpr,  # 0.0: none
    SINKS: tl.constexpr,
    ALIBI: tl.constexpr,  # 0: none
    WIDEN: tl.constexpr,  # multiply in float32 whatever the inputs are
    HEADS: tl.constexpr,  # from here on: see `Tiling`
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program: BLOCK_Q query tokens of a sequence, HEADS heads of a key/value head, a split."""
    first_query = tl.program_id(0) * BLOCK_Q
    sequence = tl.program_id(1)
    split = tl.program_id(2) % SPLITS
    HEAD_BLOCKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    first_head = tl.program_id(2) // SPLITS % HEAD_BLOCKS * HEADS
    kv_head = tl.program_id(2) // (SPLITS * HEAD_BLOCKS)
    query_start = tl.load(cu_seqlens_q_ptr + sequence)
    query_len = tl.load(cu_seqlens_q_ptr + sequence + 1) - query_start
    if first_query >= query_len:
        return
    context_len = tl.load(context_lens_ptr + sequence)

    rows = tl.arange(0, BLOCK_M)
    query = first_query + rows // HEADS
    head = kv_head * GROUP + first_head + rows % HEADS
    live = (rows < BLOCK_Q * HEADS) & (query < query_len) & (first_head + rows % HEADS < GROUP)
    token = (query_start + query).to(tl.int64)
    position = context_len - query_len + query
    dims_v = tl.arange(0, BLOCK_DV)
    dims = tl.arange(0, BLOCK_D)
    if LATENT:
        dims += HEAD_DIM_V  # those of the keys that are not values
    q_lines = (q_ptr + token * q_token_stride + head * q_head_stride)[:, None]
    q = tl.load(q_lines + dims, mask=live[:, None] & (dims < HEAD_DIM), other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    if LATENT:
        q_v = tl.load(q_lines + dims_v, mask=live[:, None] & (dims_v < HEAD_DIM_V), other=0.0)
        q_v = q_v.to(q.dtype)
    if ALIBI:
        slopes = tl.load(slopes_ptr + head, mask=live, other=0.0).to(tl.float32)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:  # a key like the others, but for its value; the first split counts it
        sinks = tl.load(sinks_ptr + head, mask=live, other=0.0).to(tl.float32) * LOG2_E
        peak = tl.where(split == 0, sinks, peak)
        total = tl.where(split == 0, 1.0, total)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    first = context_len - query_len + first_query
    last = tl.minimum(first + BLOCK_Q, context_len) - 1
    oldest = oldest_key(first, WINDOW, CHUNK)
    begin, end = key_tiles(oldest, last, split, TILE, SPLITS)
    for tile in range(begin, end):
        keys = tile * TILE + tl.arange(0, TILE)
        # What lies behind may never have been written, and 0 * NaN is NaN; pages before may have
        # been given away.
        stored = (keys >= oldest) & (keys <= last)
        pages = page_table_ptr + sequence * page_table_stride + keys // PAGE_SIZE
        slots = tl.load(pages, mask=stored, other=0).to(tl.int64) * PAGE_SIZE + keys % PAGE_SIZE
        lines = slots * NUM_KV_HEADS + kv_head
        k_lines = k_cache_ptr + lines[None, :] * HEAD_DIM
        k_mask = stored[None, :] & (dims[:, None] < HEAD_DIM)
        k = tl.load(k_lines + dims[:, None], k_mask, other=0.0)
        products = tl.dot(q, k.to(q.dtype), input_precision="ieee")
        if LATENT:
            k_mask = stored[None, :] & (dims_v[:, None] < HEAD_DIM_V)
            k_v = tl.load(k_lines + dims_v[:, None], k_mask, other=0.0).to(q.dtype)
            products = tl.dot(q_v, k_v, acc=products, input_precision="ieee")
        logits = scaled_logits(products, scale, SOFTCAP)
        if ALIBI:
            logits += alibi_bias(slopes, position, keys, scale, ALIBI)
        visible = keys[None, :] <= position[:, None]
        if WINDOW > 0 or CHUNK > 0:
            visible = visible & (keys[None, :] >= oldest_key(position, WINDOW, CHUNK)[:, None])
        logits = tl.where(visible, logits, float("-inf"))

        weights, decay, peak, total = online_softmax(logits, peak, total)
        if LATENT:
            v = tl.trans(k_v)
        else:
            v_mask = stored[:, None] & (dims_v < HEAD_DIM_V)
            v = tl.load(v_cache_ptr + lines[:, None] * HEAD_DIM_V + dims_v, v_mask, other=0.0)
            v = v.to(q.dtype)
        acc = acc * decay[:, None] + tl.dot(weights.to(q.dtype), v, input_precision="ieee")

    total = tl.where(total == 0.0, 1.0, total)  # a split may have nothing to read
    line = (token * (NUM_KV_HEADS * GROUP) + head) * SPLITS + split
    out_mask = live[:, None] & (dims_v < HEAD_DIM_V)
    tl.store(out_ptr + line[:, None] * HEAD_DIM_V + dims_v, acc / total[:, None], mask=out_mask)
    if SPLITS > 1:
        tl.store(lse_ptr + line, peak + tl.log2(total), mask=live)


@triton.jit
def merge_splits_kernel(
    out_ptr,  # [T, H, Dv]
    partial_ptr,  # [T, H, SPLITS, Dv] float32
    lse_ptr,  # [T, H, SPLITS] float32, -inf where a split had nothing to read
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program merges the splits of one query token and head."""
    line = tl.program_id(0).to(tl.int64)
    splits = line * SPLITS + tl.arange(0, SPLITS)
    dims = tl.arange(0, BLOCK_DV)
    lse = tl.load(lse_ptr + splits)
    weights = tl.exp2(lse - tl.max(lse, 0))
    offsets = splits[:, None] * HEAD_DIM_V + dims
    partial = tl.load(partial_ptr + offsets, mask=dims[None, :] < HEAD_DIM_V, other=0.0)
    out = tl.sum(weights[:, None] * partial, 0) / tl.sum(weights, 0)
    tl.store(out_ptr + line * HEAD_DIM_V + dims, out, mask=dims < HEAD_DIM_V)
