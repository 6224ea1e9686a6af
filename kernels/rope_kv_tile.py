"""A few heads of one token, normed, clipped and rotated in registers, for `rope_kv_triton`."""

from __future__ import annotations

import triton
import triton.language as tl

from assembler.kernels.norms_triton import mean_and_rstd, weighed


@triton.jit
def clipped(x, clip, HAS_CLIP: tl.constexpr, dtype: tl.constexpr):
    """x (float32) within `clip`, rounded to `dtype`, if HAS_CLIP."""
    if HAS_CLIP:
        nan: tl.constexpr = tl.PropagateNan.ALL
        x = tl.minimum(tl.maximum(x, -clip, nan), clip, nan).to(dtype).to(tl.float32)
    return x


@triton.jit
def turned_heads(
    heads_ptr,  # [heads, DIM] of the token
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
    ROTARY_DIM: tl.constexpr,  # 0: positions are not rotated
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,  # "none", "before" or "after" the rotation
    LAYER: tl.constexpr,
    OFFSET: tl.constexpr,
    EACH_HEAD: tl.constexpr,
    HAS_CLIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[HEADS, BLOCK_D] float32: queries or keys, normed, clipped and rotated."""
    dtype: tl.constexpr = heads_ptr.dtype.element_ty
    lanes = tl.arange(0, BLOCK_D)[None, :]
    mask = live & (lanes < DIM)
    rows = heads * (DIM * EACH_HEAD)
    x = tl.load(heads_ptr + heads * DIM + lanes, mask=mask, other=0.0).to(tl.float32)
    mean, rstd = 0.0, 1.0
    if NORM == "before":
        mean, rstd = mean_and_rstd(x, mask, eps, DIM, LAYER)
        x = (x - mean) * rstd
        x = weighed(x, weight_ptr, bias_ptr, rows + lanes, mask, dtype, LAYER, OFFSET)
    x = clipped(x.to(tl.float32), clip, HAS_CLIP, dtype)
    if ROTARY_DIM > 0:
        # The other number of each pair: read and normed once more, so that none is passed around.
        turns = lanes < ROTARY_DIM
        pair = lanes ^ 1 if INTERLEAVED else (lanes + ROTARY_DIM // 2) % ROTARY_DIM
        both = live & turns
        other = tl.load(heads_ptr + heads * DIM + pair, mask=both, other=0.0).to(tl.float32)
        if NORM == "before":
            other = (other - mean) * rstd
            other = weighed(other, weight_ptr, bias_ptr, rows + pair, both, dtype, LAYER, OFFSET)
        other = clipped(other.to(tl.float32), clip, HAS_CLIP, dtype)
        at = token * ROTARY_DIM + lanes
        cos = tl.load(cos_ptr + at, mask=turns, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + at, mask=turns, other=0.0).to(tl.float32)
        turned = (x * cos).to(dtype).to(tl.float32) + other * sin
        x = tl.where(turns, turned.to(dtype).to(tl.float32), x)
    if NORM == "after":
        mean, rstd = mean_and_rstd(x, mask, eps, DIM, LAYER)
        x = (x - mean) * rstd
        x = weighed(x, weight_ptr, bias_ptr, rows + lanes, mask, dtype, LAYER, OFFSET)
    return x.to(tl.float32)
