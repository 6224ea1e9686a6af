"""The first two kernels of sampling: a row's likeliest tokens, found in one reading of the logits.

`survey_kernel` reads each logit once. A program takes a chunk of a row, so that a single row is
work for many processors, and leaves what the chunk holds: its likeliest token, the weight of all of
its tokens, and the largest logit of each group of `GROUP` tokens.

`narrow_kernel` takes a row. Greedy rows and rows without filters are finished here: the latter draw
from the one chunk in which the sum of weights passes the number. For the others it collects the
tokens that can be drawn: the k-th largest of the groups' maxima is not above the k-th largest
logit, and only groups that reach it are read again.

Chunks depend on the vocabulary alone, and so do all sums: a row gets the same token in any batch.
Shapes: R rows, V vocabulary, C chunks of CHUNK tokens a row, G groups of GROUP tokens a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from assembler.kernels.sampling_search import LOWEST_KEY, load_block, order_key
from assembler.kernels.sampling_torch import NO_TOKEN

_NO_TOKEN = tl.constexpr(NO_TOKEN)
FINISHED = tl.constexpr(-1)


@triton.jit
def survey_kernel(
    best_ptr,  # [R, C] float32: the largest logit of the chunk
    token_ptr,  # [R, C] int32: the first token that has it; NO_TOKEN where a logit is NaN
    weight_ptr,  # [R, C] float32: sum of exp((logit - best) / temperature); not of greedy rows
    maxima_ptr,  # [R, G] float32
    logits_ptr,  # [R, V], rows at a stride
    temperature_ptr,  # [R] float32
    row_stride,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """What one chunk of one row holds; grid (R, C)."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = row * tl.num_programs(1) + chunk
    columns, x, mask = load_block(logits_ptr + row * row_stride, chunk * CHUNK, VOCAB, CHUNK)
    num_nan = tl.sum((x != x).to(tl.int32), 0)
    best = tl.max(x, 0)
    token = tl.min(tl.where(x == best, columns, VOCAB), 0)
    tl.store(best_ptr + place, best)
    tl.store(token_ptr + place, tl.where(num_nan > 0, _NO_TOKEN, token))
    maxima = tl.max(tl.reshape(x, (CHUNK // GROUP, GROUP)), 1)
    tl.store(maxima_ptr + place * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP), maxima)
    temperature = tl.load(temperature_ptr + row)
    if temperature > 0:
        finite = tl.abs(best) < float("inf")
        shifted = tl.where(finite, x, float("-inf")) - tl.where(finite, best, 0.0)
        scaled = tl.div_rn(shifted, temperature + tl.zeros_like(x))
        weights = tl.where(mask, tl.exp(scaled), 0.0)
        tl.store(weight_ptr + place, tl.sum(weights, 0))


@triton.jit
def _draw_from_chunk(
    logits_ptr,
    weights,  # [padded C], of the chunks
    chunks,  # [padded C], their numbers
    number,
    token,
    best,
    temperature,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Where the summed weights of all tokens pass `number`; `token` if rounding finds none."""
    summed = tl.cumsum(weights, 0)
    target = number * tl.max(summed, 0)
    passing = (summed > target) & (weights > 0)
    chunk = tl.min(tl.where(passing, chunks, VOCAB), 0)
    if chunk < VOCAB:
        before = tl.sum(tl.where(chunks < chunk, weights, 0.0), 0)
        columns, x, mask = load_block(logits_ptr, chunk * CHUNK, VOCAB, CHUNK)
        scaled = tl.div_rn(x - best, temperature + tl.zeros_like(x))
        each = tl.where(mask, tl.exp(scaled), 0.0)
        passed = (before + tl.cumsum(each, 0) > target) & (each > 0)
        drawn = tl.min(tl.where(passed, columns, VOCAB), 0)
        token = tl.where(drawn < VOCAB, drawn, token)
    return token


@triton.jit
def _floor_of_groups(maxima_ptr, best, wanted, GROUPS: tl.constexpr, PADDED: tl.constexpr):
    """The largest logit that `wanted` of the groups reach; -inf where there are too few groups."""
    places = tl.arange(0, PADDED)
    maxima = tl.load(maxima_ptr + places, mask=places < GROUPS, other=float("-inf"))
    keys = order_key(maxima)
    low = tl.full([], LOWEST_KEY, tl.int64)
    high = order_key(best).to(tl.int64) + 1
    if wanted <= GROUPS:
        while high - low > 1:
            middle = (low + high) >> 1
            enough = tl.sum((keys >= middle.to(tl.int32)).to(tl.int32), 0) >= wanted
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
    floor = tl.min(tl.where(keys >= low.to(tl.int32), maxima, float("inf")), 0)
    return tl.where(low == LOWEST_KEY, float("-inf"), floor)


@triton.jit
def _collect(
    kept_logits_ptr,
    kept_tokens_ptr,
    logits_ptr,
    maxima_ptr,
    floor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    ROOM: tl.constexpr,
):
    """Write logits from `floor` on and their tokens, in order, then -inf; how many there are."""
    count = 0
    for start in range(0, VOCAB, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        reached = tl.load(maxima_ptr + columns // GROUP) >= floor
        x = tl.load(logits_ptr + columns, mask=(columns < VOCAB) & reached, other=float("-inf"))
        x = x.to(tl.float32)
        kept = (x >= floor) & (x > float("-inf"))
        places = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        fits = kept & (places < ROOM)
        tl.store(kept_logits_ptr + places, x, mask=fits)
        tl.store(kept_tokens_ptr + places, columns, mask=fits)
        count += tl.sum(kept.to(tl.int32), 0)
    rest = tl.arange(0, ROOM)
    tl.store(kept_logits_ptr + rest, tl.full([ROOM], float("-inf"), tl.float32), mask=rest >= count)
    return count


@triton.jit
def narrow_kernel(
    out_ptr,  # [R] int64, of the rows that are finished
    count_ptr,  # [R] int32: how many tokens can be drawn; FINISHED; above ROOM: not all are kept
    floor_ptr,  # [R] float32: tokens from this logit on can be drawn
    total_ptr,  # [R] float32: the weight of all tokens, that of the likeliest being 1
    kept_logits_ptr,  # [R, ROOM] float32, -inf behind the last
    kept_tokens_ptr,  # [R, ROOM] int32
    best_ptr,  # [R, C], and the three after it: what survey_kernel left
    token_ptr,
    weight_ptr,
    maxima_ptr,
    logits_ptr,  # [R, V], rows at a stride
    temperature_ptr,  # [R], as the fields of RowSettings
    top_k_ptr,
    top_p_ptr,
    log_min_p_ptr,
    number_ptr,  # [R] float32
    row_stride,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,  # of which tokens are collected; CHUNK or a part of it
    GROUP: tl.constexpr,
    CHUNKS: tl.constexpr,  # C up to a power of two
    GROUPS: tl.constexpr,  # G up to a power of two
    HEAD: tl.constexpr,  # how many groups are to reach the floor of a row without top-k
    ROOM: tl.constexpr,
):
    """Finish a row, or collect the tokens that can be drawn; grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    count: tl.constexpr = (VOCAB + CHUNK - 1) // CHUNK
    logits_ptr += row * row_stride
    maxima_ptr += row * count * (CHUNK // GROUP)
    chunks = tl.arange(0, CHUNKS)
    there = chunks < count
    bests = tl.load(best_ptr + row * count + chunks, mask=there, other=float("-inf"))
    tokens = tl.load(token_ptr + row * count + chunks, mask=there, other=VOCAB)
    best = tl.max(bests, 0)
    token = tl.min(tl.where(bests == best, tokens, VOCAB), 0)
    temperature = tl.load(temperature_ptr + row)
    log_min_p, top_p = tl.load(log_min_p_ptr + row), tl.load(top_p_ptr + row)
    top_k = tl.load(top_k_ptr + row).to(tl.int32)
    kept = FINISHED
    if (tl.min(tokens, 0) < 0) | (tl.abs(best) == float("inf")):
        token = _NO_TOKEN
    elif temperature > 0:
        weights = tl.load(weight_ptr + row * count + chunks, mask=there, other=0.0)
        shrunk = tl.exp(tl.div_rn(bests - best, temperature + tl.zeros_like(bests)))
        weights = tl.where(there, weights * shrunk, 0.0)
        if (top_k <= 0) & (top_p >= 1.0) & (log_min_p == float("-inf")):
            number = tl.load(number_ptr + row)
            token = _draw_from_chunk(
                logits_ptr, weights, chunks, number, token, best, temperature, VOCAB, CHUNK
            )
        else:
            wanted = tl.where(top_k > 0, top_k, HEAD)
            groups: tl.constexpr = count * (CHUNK // GROUP)
            floor = _floor_of_groups(maxima_ptr, best, wanted, groups, GROUPS)
            kept = _collect(
                kept_logits_ptr + row * ROOM, kept_tokens_ptr + row * ROOM, logits_ptr, maxima_ptr,
                floor, VOCAB, BLOCK, GROUP, ROOM,
            )  # fmt: skip
            tl.store(floor_ptr + row, floor)
            tl.store(total_ptr + row, tl.sum(weights, 0))
    tl.store(out_ptr + row, token.to(tl.int64))
    tl.store(count_ptr + row, kept)
