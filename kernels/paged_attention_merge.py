"""The Triton kernel that merges what the splits of a context gave (Flash-Decoding)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge_splits_kernel(
    out_ptr,  # [T, H, Dv]
    partial_ptr,  # [T, H, SPLITS, Dv] float32, not written where a split had nothing to read
    lse_ptr,  # [T, H, SPLITS] float32, -inf there
    cu_seqlens_q_ptr,  # [S + 1] int32; read when DECODE
    NUM_HEADS: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLITS: tl.constexpr,
    DECODE: tl.constexpr,  # a program a sequence, of those with one query; else one a token
):
    """One program merges the splits of one query token and head."""
    token = tl.program_id(0)
    if DECODE:
        sequence = token
        token = tl.load(cu_seqlens_q_ptr + sequence)
        if tl.load(cu_seqlens_q_ptr + sequence + 1) - token != 1:
            return
    line = token.to(tl.int64) * NUM_HEADS + tl.program_id(1)
    splits = line * SPLITS + tl.arange(0, SPLITS)
    lse = tl.load(lse_ptr + splits)
    peak = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(peak == float("-inf"), 0.0, peak))
    dims = tl.arange(0, BLOCK_DV)
    mask = (lse != float("-inf"))[:, None] & (dims < HEAD_DIM_V)
    offsets = splits[:, None] * HEAD_DIM_V + dims
    partial = tl.load(partial_ptr + offsets, mask=mask, other=0.0)
    total = tl.sum(weights, 0)
    out = tl.sum(weights[:, None] * partial, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + line * HEAD_DIM_V + dims, out, mask=dims < HEAD_DIM_V)
