"""A few heads of one token, normed, clipped and rotated in registers, for `rope_kv_triton`."""

from __future__ import annotations

import triton
import triton.language as tl

from assembler.kernels.fp8 import to_e4m3
from assembler.kernels.norms_triton import mean_and_rstd, weighed


@triton.jit
def clipped(x, clip, HAS_CLIP: tl.constexpr, dtype: tl.constexpr):
    """x (float32) within `clip`, rounded to `dtype`, if HAS_CLIP."""
    if HAS_CLIP:
        nan: tl.constexpr = tl.PropagateNan.ALL
        x = tl.minimum(tl.maximum(x, -clip, nan), clip, nan).to(dtype).to(tl.float32)
    return x


@triton.jit
def head_means(x, mask, eps, DIM: tl.constexpr, WIDTH: tl.constexpr, LAYER: tl.constexpr):
    """`mean_and_rstd` of each row of x, DIM numbers; of all together where WIDTH is more."""
    if WIDTH == DIM:
        mean, rstd = mean_and_rstd(x, mask, eps, DIM, LAYER)
    else:
        mean = 0.0
        if LAYER:
            mean = tl.sum(tl.sum(x, 1), 0) / WIDTH
            x = tl.where(mask, x - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(tl.sum(x * x, 1), 0) / WIDTH + eps)
    return mean, rstd


@triton.jit
def swapped_pairs(x):
    """x [rows, columns] with the numbers 2d and 2d + 1 of each row in each other's place.

    A thread holds both, so nothing moves but the names of registers.
    """
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    return tl.reshape(tl.join(odd, even), (x.shape[0], x.shape[1]))


@triton.jit
def to_cache(x, scale, dtype: tl.constexpr, cache_dtype: tl.constexpr):
    """x (float32), rounded to `dtype`, as a cache holds it: one of uint8 as e4m3 of x / scale."""
    if cache_dtype == tl.uint8:
        divisor = scale + tl.zeros(x.shape, tl.float32)
        kept = to_e4m3(tl.div_rn(x.to(dtype).to(tl.float32), divisor))
    else:
        kept = x.to(dtype)
    return kept


@triton.jit
def turned_heads(
    heads_ptr,  # [heads, DIM] of the token, HEAD_STRIDE apart
    weight_ptr,  # [DIM], [heads, DIM] (EACH_HEAD) or None
    bias_ptr,
    cos_ptr,  # [T, ROTARY_DIM]
    sin_ptr,
    token,
    heads,  # [HEADS, 1]
    live,  # [HEADS, 1]
    clip,
    eps,
    DIM: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    ROTARY_DIM: tl.constexpr,  # 0: positions are not rotated
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,  # "none", "before" or "after" the rotation
    LAYER: tl.constexpr,
    OFFSET: tl.constexpr,
    EACH_HEAD: tl.constexpr,
    NORM_WIDTH: tl.constexpr,  # DIM, or of all heads that are normed as one
    HAS_CLIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[HEADS, BLOCK_D] float32: queries or keys, normed, clipped and rotated."""
    dtype: tl.constexpr = heads_ptr.dtype.element_ty
    lanes = tl.arange(0, BLOCK_D)[None, :]
    mask = live & (lanes < DIM)
    rows = heads * (DIM * EACH_HEAD)
    x = tl.load(heads_ptr + heads * HEAD_STRIDE + lanes, mask=mask, other=0.0).to(tl.float32)
    mean, rstd = 0.0, 1.0
    if NORM == "before":
        mean, rstd = head_means(x, mask, eps, DIM, NORM_WIDTH, LAYER)
        x = (x - mean) * rstd
        x = weighed(x, weight_ptr, bias_ptr, rows + lanes, mask, dtype, LAYER, OFFSET)
    x = clipped(x.to(tl.float32), clip, HAS_CLIP, dtype)
    if ROTARY_DIM > 0:
        turns = lanes < ROTARY_DIM
        if INTERLEAVED:
            other = swapped_pairs(x)
        else:
            # Half a head away: read and normed once more, so that none is passed around.
            pair = (lanes + ROTARY_DIM // 2) % ROTARY_DIM
            both = live & turns
            source = heads_ptr + heads * HEAD_STRIDE + pair
            other = tl.load(source, mask=both, other=0.0).to(tl.float32)
            if NORM == "before":
                other = (other - mean) * rstd
                at = rows + pair
                other = weighed(other, weight_ptr, bias_ptr, at, both, dtype, LAYER, OFFSET)
            other = clipped(other.to(tl.float32), clip, HAS_CLIP, dtype)
        at = token * ROTARY_DIM + lanes
        cos = tl.load(cos_ptr + at, mask=turns, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + at, mask=turns, other=0.0).to(tl.float32)
        turned = (x * cos).to(dtype).to(tl.float32) + other * sin
        x = tl.where(turns, turned.to(dtype).to(tl.float32), x)
    if NORM == "after":
        mean, rstd = head_means(x, mask, eps, DIM, NORM_WIDTH, LAYER)
        x = (x - mean) * rstd
        x = weighed(x, weight_ptr, bias_ptr, rows + lanes, mask, dtype, LAYER, OFFSET)
    return x.to(tl.float32)
