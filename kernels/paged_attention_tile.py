"""What the Triton paged-attention kernel does to one tile of keys, and which tiles those are.

Options are constexprs: what is not asked for costs nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
def key_tiles(oldest, last, split, TILE: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr):
    """The tiles [begin, end) that `split` reads of the keys oldest..last: LEAST or more of them.

    A short context thus leaves later splits without any, however many the launch has.
    """
    begin = oldest // TILE
    end = tl.cdiv(last + 1, TILE)
    if SPLITS > 1:
        tiles_per_split = tl.maximum(tl.cdiv(end - begin, SPLITS), LEAST)
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
