"""RMSNorm and LayerNorm as one Triton kernel, with the residual addition before them in it.

Each row is read once, and the sum and the normed row are written once. Means are float32, roundings
those of `norms_torch`, so that half precision gives what plain torch gives to the last bit but for
the order of a sum.

The operations are `torch.ops.assembler.{rms_norm, add_rms_norm, layer_norm, add_layer_norm}`: fx,
torch.compile and CUDA graphs take them as they are. None has a backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.fused import MAX_WIDTH, as_rows
from assembler.kernels.traced import operation


@triton.jit
def mean_and_rstd(x, mask, eps, WIDTH: tl.constexpr, LAYER: tl.constexpr):
    """Mean (0 unless LAYER) and 1 / sqrt(variance + eps), [rows, 1], of x [rows, BLOCK] float32.

    x is 0 where `mask` [rows, BLOCK] is not set.
    """
    if LAYER:
        mean = tl.sum(x, 1)[:, None] / WIDTH
        x = tl.where(mask, x - mean, 0.0)
    else:
        mean = tl.zeros([x.shape[0], 1], tl.float32)
    return mean, tl.rsqrt(tl.sum(x * x, 1)[:, None] / WIDTH + eps)


@triton.jit
def weighed(
    normed,
    weight_ptr,
    bias_ptr,
    offsets,
    mask,
    dtype: tl.constexpr,
    LAYER: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """`normed` (float32) times the weight plus the bias at `offsets`, rounded to `dtype`."""
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + offsets, mask=mask, other=0.0)
        if LAYER:
            if OFFSET:
                weight = (weight.to(tl.float32) + OFFSET).to(weight.dtype)
            normed *= weight.to(tl.float32)
        elif OFFSET:
            normed *= weight.to(tl.float32) + OFFSET
        else:
            normed = normed.to(dtype).to(tl.float32) * weight.to(tl.float32)
    if bias_ptr is not None:
        normed += tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    return normed.to(dtype)


@triton.jit(do_not_specialize=["num_rows"])  # steps differ in it: one binary serves them all
def norm_kernel(
    out_ptr,  # [N, WIDTH]
    sum_ptr,  # [N, WIDTH]; None without a residual
    x_ptr,  # [N, WIDTH]
    residual_ptr,  # [N, WIDTH]; None: x is normed as it is
    weight_ptr,  # [HEADS, WIDTH] or None
    bias_ptr,  # [HEADS, WIDTH] or None
    num_rows,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,  # row r has the weight of head r % HEADS
    LAYER: tl.constexpr,  # LayerNorm, else RMSNorm
    OFFSET: tl.constexpr,
    ROWS: tl.constexpr,  # rows a program
    BLOCK: tl.constexpr,  # power of two >= WIDTH
):
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows) & (columns < WIDTH)
    x = tl.load(x_ptr + rows * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + rows * residual_stride + columns, mask=mask, other=0.0)
        total = (residual.to(tl.float32) + x).to(dtype)
        tl.store(sum_ptr + rows * WIDTH + columns, total, mask=mask)
        x = total.to(tl.float32)
    mean, rstd = mean_and_rstd(x, mask, eps, WIDTH, LAYER)
    offsets = rows % HEADS * WIDTH + columns
    out = weighed((x - mean) * rstd, weight_ptr, bias_ptr, offsets, mask, dtype, LAYER, OFFSET)
    tl.store(out_ptr + rows * WIDTH + columns, out, mask=mask)


@operation("assembler::rms_norm")
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: int) -> torch.Tensor:
    """`rms_norm_torch`, in one kernel: x [..., width <= MAX_WIDTH] -> the same, contiguous."""
    return _launch(x, None, weight, None, eps, offset, layer=False)[0]


@operation("assembler::add_rms_norm")
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(residual + x), residual + x) in one kernel, all [..., width <= MAX_WIDTH]."""
    return _launch(x, residual, weight, None, eps, offset, layer=False)


@operation("assembler::layer_norm")
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    offset: int,
) -> torch.Tensor:
    """`layer_norm_torch`, in one kernel: x [..., width <= MAX_WIDTH] -> the same, contiguous."""
    return _launch(x, None, weight, bias, eps, offset, layer=True)[0]


@operation("assembler::add_layer_norm")
def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    offset: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(layer_norm(residual + x), residual + x) in one kernel, all [..., width <= MAX_WIDTH]."""
    return _launch(x, residual, weight, bias, eps, offset, layer=True)


@rms_norm.register_fake
@layer_norm.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


@add_rms_norm.register_fake
@add_layer_norm.register_fake
def _(x, *_):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    offset: int,
    *,
    layer: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    width = x.shape[-1]
    assert 0 < width <= MAX_WIDTH and (residual is None or residual.shape == x.shape)
    out = x.new_empty(x.shape)
    total = None if residual is None else x.new_empty(x.shape)
    if x.numel() == 0:
        return out, total
    x = as_rows(x)
    residual = None if residual is None else as_rows(residual)
    leaf = bias if weight is None else weight
    heads = 1 if leaf is None or leaf.dim() == 1 else leaf.shape[0]
    block = triton.next_power_of_2(width)
    rows = max(1, min(1024 // block, triton.next_power_of_2(len(x))))
    norm_kernel[(triton.cdiv(len(x), rows),)](
        out,
        total,
        x,
        residual,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        len(x),
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        WIDTH=width,
        HEADS=heads,
        LAYER=layer,
        OFFSET=offset,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps(rows * block),
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
    return out, total


def num_warps(numbers: int) -> int:
    """Warps of a program over so many numbers: 16 or 32 numbers a thread, as registers allow."""
    return max(1, min(16, numbers // 512))
