"""The Triton kernel that merges what the splits of a context gave (Flash-Decoding)."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_DV = 32  # numbers a program: a line of memory, and few registers whatever the width


@triton.jit(
    do_not_specialize=["num_splits"],
    do_not_specialize_on_alignment=["cu_seqlens_q_ptr"],
)
def merge_splits_kernel(
    out_ptr,  # [T, H, Dv]
    # [N, H, num_splits, Dv] float32, not written where a split had nothing to read; N is S when
    # DECODE, else T
    partial_ptr,
    lse_ptr,  # [N, H, num_splits] float32, -inf there
    cu_seqlens_q_ptr,  # [S + 1] int32; read when DECODE
    num_splits,  # at most MAX_SPLITS
    NUM_HEADS: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    DECODE: tl.constexpr,  # a program a sequence, of those with one query; else one a token
):
    """One program merges the splits of BLOCK_DV numbers of a query token and head.

    Programs are (sequences or tokens, heads, parts of Dv).
    """
    place = tl.program_id(0).to(tl.int64)
    token = place
    if DECODE:
        first = tl.load(cu_seqlens_q_ptr + place)
        if tl.load(cu_seqlens_q_ptr + place + 1) - first != 1:
            return
        token = first.to(tl.int64)
    split = tl.arange(0, MAX_SPLITS)
    lines = (place * NUM_HEADS + tl.program_id(1)) * num_splits + split
    lse = tl.load(lse_ptr + lines, mask=split < num_splits, other=float("-inf"))
    peak = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(peak == float("-inf"), 0.0, peak))
    dims = tl.program_id(2) * BLOCK_DV + tl.arange(0, BLOCK_DV)
    mask = (lse != float("-inf"))[:, None] & (dims < HEAD_DIM_V)
    partial = tl.load(partial_ptr + lines[:, None] * HEAD_DIM_V + dims, mask=mask, other=0.0)
    total = tl.sum(weights, 0)
    out = tl.sum(weights[:, None] * partial, 0) / tl.where(total == 0.0, 1.0, total)
    out_line = token * NUM_HEADS + tl.program_id(1)
    tl.store(out_ptr + out_line * HEAD_DIM_V + dims, out, mask=dims < HEAD_DIM_V)
