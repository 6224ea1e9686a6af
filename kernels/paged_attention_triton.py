"""Attention over paged KV memory as Triton kernels, for steps that mix prefill and decode freely.

One kernel runs the online softmax of FlashAttention-2 (Dao, 2023) over the pages of PagedAttention
(Kwon et al., 2023, vLLM). The query heads that share a key/value head are packed into the rows of
one tile, so a page is read once for all of them. When a decode step has too few sequences to fill
the device, their contexts are cut into splits that run side by side and are merged by a second
kernel (Flash-Decoding: Dao et al., 2023).

Same contract as `paged_attention_torch`, which it is tested against.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.paged_attention_tiling import choose_splits, choose_tiling
from assembler.kernels.paged_batch import PagedBatch

LOG2_E = tl.constexpr(1.4426950408889634)  # the hardware has exp2: softmax is taken in base 2


@triton.jit
def _logits(products, scale, SOFTCAP: tl.constexpr):
    """Scale and soft-cap q·k; the result is in units of log 2."""
    if SOFTCAP == 0.0:
        logits = products * (scale * LOG2_E)
    else:
        tanh = 2.0 * tl.sigmoid(products * (2.0 * scale / SOFTCAP)) - 1.0
        logits = tanh * (SOFTCAP * LOG2_E)
    return logits


@triton.jit
def _key_tiles(first, last, split, WINDOW: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """The tiles of keys [begin, end) that `split` reads for queries at positions first..last."""
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first - WINDOW + 1, 0) // TILE
    end = tl.cdiv(last + 1, TILE)
    tiles_per_split = tl.cdiv(end - begin, SPLITS)
    begin += split * tiles_per_split
    return begin, tl.minimum(begin + tiles_per_split, end)


@triton.jit
def _online_softmax(logits, peak, total):
    """Weigh a tile of logits given each row's highest logit and sum of weights so far.

    Returns the weights relative to the new peaks, what sums so far decay by, and both updated.
    """
    new_peak = tl.maximum(peak, tl.max(logits, 1))
    # A row that has seen no key yet: -inf - -inf is NaN, -inf - 0 gives the weight 0 it has.
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(logits - base[:, None])
    decay = tl.exp2(peak - base)
    return weights, decay, new_peak, total * decay + tl.sum(weights, 1)


@triton.jit
def paged_attention_kernel(
    out_ptr,  # [T, H, SPLITS, Dv]; float32 when SPLITS > 1
    lse_ptr,  # [T, H, SPLITS] float32, log2 of the sum of exp; written when SPLITS > 1
    q_ptr,  # [T, H, D]
    k_cache_ptr,  # [P, PAGE_SIZE, K, D]
    v_cache_ptr,  # [P, PAGE_SIZE, K, Dv]
    page_table_ptr,  # [S, max_pages] int32
    cu_seqlens_q_ptr,  # [S + 1] int32
    context_lens_ptr,  # [S] int32
    scale,
    q_token_stride,
    q_head_stride,
    page_table_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads a key/value head
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    SOFTCAP: tl.constexpr,  # 0.0: none
    WIDEN: tl.constexpr,  # multiply in float32 whatever the inputs are
    BLOCK_Q: tl.constexpr,  # from here on: see `Tiling`
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program: BLOCK_Q query tokens of a sequence, the heads of one key/value head, a split."""
    first_query = tl.program_id(0) * BLOCK_Q
    sequence = tl.program_id(1)
    kv_head = tl.program_id(2) // SPLITS
    split = tl.program_id(2) % SPLITS
    query_start = tl.load(cu_seqlens_q_ptr + sequence)
    query_len = tl.load(cu_seqlens_q_ptr + sequence + 1) - query_start
    if first_query >= query_len:
        return
    context_len = tl.load(context_lens_ptr + sequence)

    rows = tl.arange(0, BLOCK_M)
    query = first_query + rows // GROUP
    head = kv_head * GROUP + rows % GROUP
    live = (rows < BLOCK_Q * GROUP) & (query < query_len)
    token = (query_start + query).to(tl.int64)
    position = context_len - query_len + query
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    q_offsets = (token * q_token_stride + head * q_head_stride)[:, None] + dims
    q = tl.load(q_ptr + q_offsets, mask=live[:, None] & (dims < HEAD_DIM), other=0.0)
    if WIDEN:
        q = q.to(tl.float32)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    first = context_len - query_len + first_query
    last = tl.minimum(first + BLOCK_Q, context_len) - 1
    begin, end = _key_tiles(first, last, split, WINDOW, TILE, SPLITS)
    for tile in range(begin, end):
        keys = tile * TILE + tl.arange(0, TILE)
        stored = keys <= last  # what lies behind may never have been written, and 0 * NaN is NaN
        if WINDOW > 0:
            stored = stored & (keys > first - WINDOW)  # pages before may have been given away
        pages = page_table_ptr + sequence * page_table_stride + keys // PAGE_SIZE
        slots = tl.load(pages, mask=stored, other=0).to(tl.int64) * PAGE_SIZE + keys % PAGE_SIZE
        lines = slots * NUM_KV_HEADS + kv_head
        k_mask = stored[None, :] & (dims[:, None] < HEAD_DIM)
        k = tl.load(k_cache_ptr + lines[None, :] * HEAD_DIM + dims[:, None], k_mask, other=0.0)
        logits = _logits(tl.dot(q, k.to(q.dtype), input_precision="ieee"), scale, SOFTCAP)
        visible = keys[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (position[:, None] - keys[None, :] < WINDOW)
        logits = tl.where(visible, logits, float("-inf"))

        weights, decay, peak, total = _online_softmax(logits, peak, total)
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


def _splits_to_fill(
    device: torch.device, batch: PagedBatch, num_kv_heads: int, window: int | None
) -> int:
    """The splits of a decode step; a prefill has programs enough."""
    if not batch.is_decode or device.type != "cuda":
        return 1
    max_keys = min(batch.max_context_len, window or batch.max_context_len)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return choose_splits(len(batch.context_lens) * num_kv_heads, max_keys, processors)


def paged_attention_triton(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    batch: PagedBatch,
    options: AttentionOptions,
    *,
    splits: int | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence's query tokens over what its pages hold -> [T, H, Dv].

    Arguments as in `paged_attention_torch`; the last dim of q must be contiguous. `splits` (a power
    of two) is how many parts each context is cut into, by default as many as fill the device.
    """
    assert options.chunk is options.sinks is options.alibi_slopes is options.value_dim is None
    assert q.stride(2) == 1, q.stride()
    assert k_cache.is_contiguous() and v_cache.is_contiguous()
    num_tokens, num_heads, head_dim = q.shape
    page_size, num_kv_heads, head_dim_v = v_cache.shape[1:]
    group = num_heads // num_kv_heads
    out = q.new_empty(num_tokens, num_heads, head_dim_v)
    if num_tokens == 0:
        return out
    tiling = choose_tiling(group, head_dim, head_dim_v, q.element_size(), batch.max_seqlen_q)
    if splits is None:
        splits = _splits_to_fill(q.device, batch, num_kv_heads, options.reach)
    partial, lse = out, out
    if splits > 1:
        partial = out.new_empty(num_tokens, num_heads, splits, head_dim_v, dtype=torch.float32)
        lse = out.new_empty(num_tokens, num_heads, splits, dtype=torch.float32)
    query_blocks = triton.cdiv(batch.max_seqlen_q, tiling.BLOCK_Q)
    paged_attention_kernel[(query_blocks, len(batch.context_lens), num_kv_heads * splits)](
        partial,
        lse,
        q,
        k_cache,
        v_cache,
        batch.page_table,
        batch.cu_seqlens_q,
        batch.context_lens,
        options.scale,
        q.stride(0),
        q.stride(1),
        batch.page_table.stride(0),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        HEAD_DIM_V=head_dim_v,
        PAGE_SIZE=page_size,
        WINDOW=options.window or 0,
        SOFTCAP=options.softcap or 0.0,
        # Triton's interpreter takes the bits of a bfloat16 for an integer in tl.dot.
        WIDEN=triton.knobs.runtime.interpret and q.dtype == torch.bfloat16,
        SPLITS=splits,
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
        **vars(tiling),
    )
    if splits > 1:
        merge_splits_kernel[(num_tokens * num_heads,)](
            out,
            partial,
            lse,
            HEAD_DIM_V=head_dim_v,
            BLOCK_DV=tiling.BLOCK_DV,
            SPLITS=splits,
            enable_fp_fusion=True,
        )
    return out
