"""The Triton kernel of attention over paged KV memory; `paged_attention_triton` launches it.

Its constants come in two tuples: `what` is computed (`Attention`), in which `tiles` (`Tiles`).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from assembler.kernels.paged_attention_load import find_sequence, load_lines, tile_pages
from assembler.kernels.paged_attention_tile import attend_tile, key_tiles, nothing_seen, oldest_key


class Attention(NamedTuple):
    """Constants that say what is computed."""

    NUM_KV_HEADS: int
    GROUP: int  # query heads a key/value head
    HEAD_DIM: int
    HEAD_DIM_V: int
    PAGE_SIZE: int
    LATENT: bool  # values are the first HEAD_DIM_V numbers of the keys
    WINDOW: int  # 0: none
    CHUNK: int  # 0: none
    SOFTCAP: float  # 0.0: none
    SINKS: bool
    ALIBI: int  # 0: none
    OPERAND: tl.dtype  # what is multiplied


# What changes from step to step is not specialised: each new value would have to be compiled for.
@triton.jit(
    do_not_specialize=["num_sequences", "page_table_stride"],
    do_not_specialize_on_alignment=["page_table_ptr", "cu_seqlens_q_ptr", "context_lens_ptr"],
)
def paged_attention_kernel(
    # [T, H, Dv]; when SPLIT [T, H, splits, Dv] float32, or [S, H, splits, Dv] when DECODE
    out_ptr,
    lse_ptr,  # the same without Dv: log2 of the sum of exp, float32; written when SPLIT
    q_ptr,  # [T, H, D]
    k_cache_ptr,  # [P, PAGE_SIZE, K, D]; of 8 bits: e4m3, or its bits as uint8
    v_cache_ptr,  # [P, PAGE_SIZE, K, Dv]; not read when LATENT
    page_table_ptr,  # [S, max_pages] int32
    cu_seqlens_q_ptr,  # [S + 1] int32
    context_lens_ptr,  # [S] int32
    sinks_ptr,  # [H]; read when SINKS
    slopes_ptr,  # [H]; read when ALIBI
    scale,
    k_scale,  # what 1 in the caches stands for
    v_scale,
    num_sequences,
    q_token_stride,
    q_head_stride,
    page_table_stride,
    what: tl.constexpr,
    tiles: tl.constexpr,
    DECODE: tl.constexpr,  # sequences of one query, a program each; else of several, one for each
    # block of their queries
    SPLIT: tl.constexpr,
):
    """One program: BLOCK_Q query tokens of a sequence, HEADS heads of a key/value head, a split.

    Programs are (sequences or blocks of queries, parts of the heads, splits).
    """
    if DECODE:
        sequence, first_query = tl.program_id(0), 0
    else:  # the programs with the most keys, those of the last queries, start first
        block = tl.num_programs(0) - 1 - tl.program_id(0)
        sequence, first_query = find_sequence(cu_seqlens_q_ptr, block, num_sequences, tiles.BLOCK_Q)
    query_start = tl.load(cu_seqlens_q_ptr + sequence)
    query_len = tl.load(cu_seqlens_q_ptr + sequence + 1) - query_start
    if (first_query >= query_len) | ((query_len == 1) != DECODE):
        return
    HEAD_BLOCKS: tl.constexpr = (what.GROUP + tiles.HEADS - 1) // tiles.HEADS
    group_head = tl.program_id(1) % HEAD_BLOCKS * tiles.HEADS
    kv_head = tl.program_id(1) // HEAD_BLOCKS
    split, splits = tl.program_id(2), tl.num_programs(2)
    first_token = (query_start + first_query).to(tl.int64)
    first_head = kv_head * what.GROUP + group_head
    # What is far from the rows is added up first, in 64 bits: one number for all of them.
    NUM_HEADS: tl.constexpr = what.NUM_KV_HEADS * what.GROUP
    first_line = first_token * NUM_HEADS + first_head
    if SPLIT:
        if DECODE:  # numbered by sequence: those of several queries have no lines
            first_line = sequence.to(tl.int64) * NUM_HEADS + first_head
        first_line = first_line * splits + split

    rows = tl.arange(0, tiles.BLOCK_M)
    row_query, row_head, live = _row_places(rows, query_len - first_query, group_head, what, tiles)
    context_len = tl.load(context_lens_ptr + sequence)
    first = context_len - query_len + first_query
    position = first + row_query
    last = tl.minimum(first + tiles.BLOCK_Q, context_len) - 1
    oldest = oldest_key(first, what.WINDOW, what.CHUNK)
    begin, end = key_tiles(oldest, last, split, splits, tiles.TILE, SPLIT, tiles.LEAST)
    if SPLIT and (begin >= end) & (split > 0):  # the first has the sinks, and always writes
        lines = (row_query * NUM_HEADS + row_head) * splits
        nothing = tl.full([tiles.BLOCK_M], float("-inf"), tl.float32)
        tl.store(lse_ptr + first_line + lines, nothing, mask=live)
        return
    q_ptr += first_token * q_token_stride + first_head * q_head_stride
    q_lines = q_ptr + (row_query * q_token_stride + row_head * q_head_stride)[:, None]
    q, q_rest = _load_queries(q_lines, live[:, None], what, tiles)
    slopes = 0.0
    if what.ALIBI:
        slopes = tl.load(slopes_ptr + first_head + row_head, mask=live, other=0.0).to(tl.float32)

    k_ptr = k_cache_ptr + kv_head * what.HEAD_DIM
    v_ptr = v_cache_ptr + kv_head * what.HEAD_DIM_V
    pages_ptr = page_table_ptr + sequence * page_table_stride
    pages = tile_pages(pages_ptr, begin, last, what.PAGE_SIZE, tiles.TILE)
    state = nothing_seen(pages, sinks_ptr + first_head + row_head, live, split, what, tiles)
    if not DECODE:  # where memory is the bound a mask costs less than a second loop to fill
        seen_by_all = oldest_key(last, what.WINDOW, what.CHUNK)
        whole = tl.minimum(tl.cdiv(seen_by_all, tiles.TILE), end)
        if what.WINDOW > 0 or what.CHUNK > 0:
            for tile in range(begin, whole):
                state = attend_tile(
                    state, q, q_rest, tile, position, oldest, last, slopes, k_ptr, v_ptr,
                    pages_ptr, scale, k_scale, what, tiles, True,
                )  # fmt: skip
            begin = tl.maximum(begin, whole)
        masked = tl.minimum((first + 1) // tiles.TILE, end)
        for tile in range(begin, masked):
            state = attend_tile(
                state, q, q_rest, tile, position, oldest, last, slopes, k_ptr, v_ptr,
                pages_ptr, scale, k_scale, what, tiles, False,
            )  # fmt: skip
        begin = tl.maximum(begin, masked)
    for tile in range(begin, end):
        state = attend_tile(
            state, q, q_rest, tile, position, oldest, last, slopes, k_ptr, v_ptr,
            pages_ptr, scale, k_scale, what, tiles, True,
        )  # fmt: skip

    _, acc, acc_rest, peak, total = state
    factor = (v_scale / tl.where(total == 0.0, 1.0, total))[:, None]  # there may be no keys
    # Worked out anew: rows, and what is live, would else be kept in registers through the loops.
    rows = tl.arange(0, tiles.BLOCK_M) + tl.minimum(end, 0)  # 0, which the compiler does not know
    row_query, row_head, live = _row_places(rows, query_len - first_query, group_head, what, tiles)
    lines = row_query * NUM_HEADS + row_head
    if SPLIT:
        lines *= splits
    out_lines = out_ptr + first_line * what.HEAD_DIM_V + (lines * what.HEAD_DIM_V)[:, None]
    dims = tl.arange(0, tiles.BLOCK_DV)[None, :]
    tl.store(out_lines + dims, acc * factor, mask=live[:, None] & (dims < tiles.MAIN_DV))
    if tiles.REST_DV > 0:
        dims = tiles.MAIN_DV + tl.arange(0, tiles.REST_DV)[None, :]
        mask = live[:, None] & (dims < what.HEAD_DIM_V)
        tl.store(out_lines + dims, acc_rest * factor, mask=mask)
    if SPLIT:
        lse = peak + tl.log2(tl.where(total == 0.0, 1.0, total))
        tl.store(lse_ptr + first_line + lines, lse, mask=live)


@triton.jit
def _row_places(rows, queries_left, group_head, what: tl.constexpr, tiles: tl.constexpr):
    """Of each row: its query and head, counted from the program's first; whether it has any."""
    row_query, row_head = rows * 0, rows
    live = rows < tiles.BLOCK_Q * tiles.HEADS
    if tiles.BLOCK_Q > 1:
        row_query, row_head = rows // tiles.HEADS, rows % tiles.HEADS
        live = live & (row_query < queries_left)
    if what.GROUP % tiles.HEADS != 0:
        live = live & (group_head + row_head < what.GROUP)
    return row_query, row_head, live


@triton.jit
def _load_queries(q_lines, live, what: tl.constexpr, tiles: tl.constexpr):
    """Queries [M, BLOCK_D], and the rest of them [M, REST_D]."""
    dims = tl.arange(0, tiles.BLOCK_D)[None, :]
    q = load_lines(q_lines, dims, live, tiles.MAIN_D, tiles.BLOCK_D, True).to(what.OPERAND)
    q_rest = q
    if tiles.REST_D > 0:
        REST_D: tl.constexpr = what.HEAD_DIM - tiles.MAIN_D
        dims = tl.arange(0, tiles.REST_D)[None, :]
        q_rest = load_lines(q_lines + tiles.MAIN_D, dims, live, REST_D, tiles.REST_D, True)
        q_rest = q_rest.to(what.OPERAND)
    return q, q_rest
