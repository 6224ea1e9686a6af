"""Where top-k and top-p cut a row of logits, found by bisection instead of sorting.

Floats are compared as integers of the same order, so a search ends after 32 passes over the row at
most; it ends sooner when one token is left between its two ends. A row is read in blocks: it is one
of the model's, or the few tokens of it that can be drawn, followed by -inf.

Parts of the kernels in `sampling_survey` and `sampling_triton`; a row's kept tokens are those whose
key is not below a floor and whose scaled logit is not below that of min-p.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST_KEY = tl.constexpr(-2139095041)  # of -inf


@triton.jit
def order_key(x):
    """An int32 for each float32 (no NaN), in the same order; 0 and -0 are the same."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def load_block(logits_ptr, start, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Columns from `start` on, their logits in float32 and whether they exist."""
    columns = start + tl.arange(0, BLOCK)
    mask = columns < VOCAB
    x = tl.load(logits_ptr + columns, mask=mask, other=float("-inf")).to(tl.float32)
    return columns, x, mask


@triton.jit
def scaled_weights(x, mask, best, temperature, log_min_p, floor):
    """(x - best) / temperature, and e to its power where the token is kept, else 0."""
    scaled = tl.div_rn(x - best, temperature + tl.zeros_like(x))
    kept = mask & (scaled >= log_min_p) & (order_key(x).to(tl.int64) >= floor)
    return scaled, tl.where(kept, tl.exp(scaled), 0.0)


@triton.jit
def mass_above(
    logits_ptr, best, temperature, log_min_p, floor, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """The weight of the kept tokens from `floor` on, and how many tokens there are."""
    mass = 0.0
    count = 0
    for start in range(0, VOCAB, BLOCK):
        _, x, mask = load_block(logits_ptr, start, VOCAB, BLOCK)
        _, weights = scaled_weights(x, mask, best, temperature, log_min_p, floor)
        mass += tl.sum(weights, 0)
        count += tl.sum((mask & (order_key(x).to(tl.int64) >= floor)).to(tl.int32), 0)
    return mass, count


@triton.jit
def count_above(logits_ptr, floor, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """How many tokens have keys from `floor` on."""
    count = 0
    for start in range(0, VOCAB, BLOCK):
        _, x, mask = load_block(logits_ptr, start, VOCAB, BLOCK)
        count += tl.sum((mask & (order_key(x).to(tl.int64) >= floor)).to(tl.int32), 0)
    return count


@triton.jit
def top_k_floor(logits_ptr, best, top_k, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key (int64) that `top_k` tokens are not below."""
    low = tl.full([], LOWEST_KEY, tl.int64)
    high = order_key(best).to(tl.int64) + 1
    above_low = VOCAB
    if (top_k > 0) & (top_k < VOCAB):
        while (high - low > 1) & (above_low != top_k):
            middle = (low + high) >> 1
            count = count_above(logits_ptr, middle, VOCAB, BLOCK)
            enough = count >= top_k
            low = tl.where(enough, middle, low)
            above_low = tl.where(enough, count, above_low)
            high = tl.where(enough, high, middle)
    return low


@triton.jit
def top_p_floor(
    logits_ptr,
    best,
    temperature,
    log_min_p,
    top_p,
    floor,
    total,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key from `floor` on that tokens of the share `top_p` of `total` are not below.

    Also the weight of these tokens. `total` below 0: that of the kept tokens.
    """
    mass, above_low = mass_above(logits_ptr, best, temperature, log_min_p, floor, VOCAB, BLOCK)
    low = floor
    if top_p < 1.0:
        goal = top_p * tl.where(total < 0, mass, total)
        high = order_key(best).to(tl.int64) + 1
        above_high = 0
        while (high - low > 1) & (above_low - above_high > 1):
            middle = (low + high) >> 1
            part, count = mass_above(logits_ptr, best, temperature, log_min_p, middle, VOCAB, BLOCK)
            enough = part >= goal
            low = tl.where(enough, middle, low)
            mass = tl.where(enough, part, mass)
            above_low = tl.where(enough, count, above_low)
            high = tl.where(enough, high, middle)
            above_high = tl.where(enough, above_high, count)
    return low, mass
