"""What the Triton paged-attention kernel does to one tile of keys, and which tiles those are.

Options are constexprs: what is not asked for costs nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from assembler.kernels.paged_attention_load import (
    as_operand,
    load_lines,
    tile_pages,
    tile_slots,
)

LOG2_E = tl.constexpr(1.4426950408889634)  # the hardware has exp2: softmax is taken in base 2
ALIBI_EXACT = tl.constexpr(1)
ALIBI_ROUNDED = tl.constexpr(2)  # to bfloat16, and scaled like q·k


@triton.jit
def oldest_key(positions, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first key that queries at `positions` see."""
    oldest = positions * 0
    if WINDOW > 0:
        oldest = tl.maximum(oldest, positions - WINDOW + 1)
    if CHUNK > 0:
        oldest = tl.maximum(oldest, positions - positions % CHUNK)
    return oldest


@triton.jit
def key_tiles(
    oldest, last, split, splits, TILE: tl.constexpr, SPLIT: tl.constexpr, LEAST: tl.constexpr
):
    """The tiles [begin, end) that `split` reads of the keys oldest..last: LEAST or more of them.

    A short context thus leaves later splits without any, however many the launch has.
    """
    begin = oldest // TILE
    end = tl.cdiv(last + 1, TILE)
    if SPLIT:
        tiles_per_split = tl.maximum(tl.cdiv(end - begin, splits), LEAST)
        begin += split * tiles_per_split
        end = tl.minimum(begin + tiles_per_split, end)
    return begin, end


@triton.jit
def scaled_logits(products, scale, SOFTCAP: tl.constexpr):
    """Scale and soft-cap q·k; the result is in units of log 2."""
    if SOFTCAP == 0.0:
        logits = products * (scale * LOG2_E)
    else:
        tanh = 2.0 * tl.sigmoid(products * (2.0 * scale / SOFTCAP)) - 1.0
        logits = tanh * (SOFTCAP * LOG2_E)
    return logits


@triton.jit
def alibi_bias(slopes, positions, keys, scale, ALIBI: tl.constexpr):
    """ALiBi of queries at `positions`, each with its slope, over `keys`, in units of log 2."""
    if ALIBI == ALIBI_ROUNDED:
        rounded_keys = _round_to_bfloat16(keys.to(tl.float32))
        products = _round_to_bfloat16(slopes)[:, None] * rounded_keys[None, :]
        bias = _round_to_bfloat16(products) * (scale * LOG2_E)
    else:
        bias = (slopes * LOG2_E)[:, None] * (keys[None, :] - positions[:, None]).to(tl.float32)
    return bias


@triton.jit
def _round_to_bfloat16(numbers):
    """float32 rounded to nearest even, still float32; Triton's interpreter would cut bits off."""
    bits = numbers.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def online_softmax(logits, peak, total):
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
def nothing_seen(pages, sinks_ptr, live, split, what: tl.constexpr, tiles: tl.constexpr):
    """The state of `attend_tile` before the first tile, that of `pages`."""
    peak = tl.full([tiles.BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([tiles.BLOCK_M], tl.float32)
    if what.SINKS:  # a key like the others, but for its value; the first split counts it
        sinks = tl.load(sinks_ptr, mask=live, other=0.0).to(tl.float32) * LOG2_E
        peak = tl.where(split == 0, sinks, peak)
        total = tl.where(split == 0, 1.0, total)
    acc = tl.zeros([tiles.BLOCK_M, tiles.BLOCK_DV], tl.float32)
    acc_rest = 0.0
    if tiles.REST_DV > 0:
        acc_rest = tl.zeros([tiles.BLOCK_M, tiles.REST_DV], tl.float32)
    return pages, acc, acc_rest, peak, total


@triton.jit
def attend_tile(
    # The pages of the tile, acc [M, BLOCK_DV], its rest [M, REST_DV], and peak and total [M] as
    # `online_softmax` has them.
    state,
    q,  # [M, BLOCK_D]
    q_rest,  # [M, REST_D]
    tile,
    position,  # [M] of the queries
    oldest,  # the keys that any of them sees are oldest..last
    last,
    slopes,  # [M]
    k_ptr,  # of this key/value head
    v_ptr,
    pages_ptr,  # of this sequence
    scale,
    k_scale,
    what: tl.constexpr,
    tiles: tl.constexpr,
    MASKED: tl.constexpr,  # not every query sees every key of the tile
):
    """`state` after attention to one tile of keys."""
    pages, acc, acc_rest, peak, total = state
    keys = tile * tiles.TILE + tl.arange(0, tiles.TILE)
    stored = (keys >= oldest) & (keys <= last)
    slots = tile_slots(pages, tile, what.PAGE_SIZE, tiles.TILE)
    pages = tile_pages(pages_ptr, tile + 1, last, what.PAGE_SIZE, tiles.TILE)
    k_lines = k_ptr + slots[None, :] * (what.NUM_KV_HEADS * what.HEAD_DIM)
    dims = tl.arange(0, tiles.BLOCK_D)[:, None]
    k = load_lines(k_lines, dims, stored[None, :], tiles.MAIN_D, tiles.BLOCK_D, MASKED)
    k = as_operand(k, what.OPERAND)
    products = tl.dot(q, k, input_precision="ieee")
    if tiles.REST_D > 0:
        REST_D: tl.constexpr = what.HEAD_DIM - tiles.MAIN_D
        dims = tl.arange(0, tiles.REST_D)[:, None]
        k_lines += tiles.MAIN_D
        k_rest = load_lines(k_lines, dims, stored[None, :], REST_D, tiles.REST_D, MASKED)
        products = tl.dot(
            q_rest, as_operand(k_rest, what.OPERAND), products, input_precision="ieee"
        )

    logits = scaled_logits(products, scale * k_scale, what.SOFTCAP)
    if what.ALIBI:
        logits += alibi_bias(slopes, position, keys, scale, what.ALIBI)
    if MASKED:
        visible = keys[None, :] <= position[:, None]
        if what.WINDOW > 0 or what.CHUNK > 0:
            seen_from = oldest_key(position, what.WINDOW, what.CHUNK)
            visible = visible & (keys[None, :] >= seen_from[:, None])
        logits = tl.where(visible, logits, float("-inf"))
    weights, decay, peak, total = online_softmax(logits, peak, total)
    weights = weights.to(what.OPERAND)

    if what.LATENT:
        v = tl.trans(k)
    else:
        v_lines = v_ptr + slots[:, None] * (what.NUM_KV_HEADS * what.HEAD_DIM_V)
        dims = tl.arange(0, tiles.BLOCK_DV)[None, :]
        v = load_lines(v_lines, dims, stored[:, None], tiles.MAIN_DV, tiles.BLOCK_DV, MASKED)
        v = as_operand(v, what.OPERAND)
    acc = tl.dot(weights, v, acc * decay[:, None], input_precision="ieee")
    if tiles.REST_DV > 0:
        REST_DV: tl.constexpr = what.HEAD_DIM_V - tiles.MAIN_DV
        dims = tl.arange(0, tiles.REST_DV)[None, :]
        v_lines += tiles.MAIN_DV
        v = load_lines(v_lines, dims, stored[:, None], REST_DV, tiles.REST_DV, MASKED)
        v = as_operand(v, what.OPERAND)
        acc_rest = tl.dot(weights, v, acc_rest * decay[:, None], input_precision="ieee")
    return pages, acc, acc_rest, peak, total
