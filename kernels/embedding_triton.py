"""Token embeddings times a factor as one Triton kernel, of a whole vocabulary or a rank's share.

The operation is `torch.ops.assembler.embed`; it has no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.traced import operation

_BLOCK = 1024


@triton.jit
def embed_kernel(
    out_ptr,  # [N, WIDTH]
    tokens_ptr,  # [N] int64 or int32
    weight_ptr,  # [V, WIDTH]
    first,  # the token of the weight's first row
    num_rows,
    factor,
    WIDTH: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK numbers of a token."""
    place = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(tokens_ptr + place).to(tl.int64) - first
    width_here = tl.where((row >= 0) & (row < num_rows), WIDTH, 0)
    x = tl.load(weight_ptr + row * WIDTH + columns, mask=columns < width_here, other=0.0)
    if SCALED:
        x = (x.to(tl.float32) * factor).to(x.dtype)
    tl.store(out_ptr + place * WIDTH + columns, x, mask=columns < WIDTH)


@operation("assembler::embed")
def embed_triton(
    tokens: torch.Tensor, weight: torch.Tensor, factor: float = 1.0, first: int = 0
) -> torch.Tensor:
    """Rows `tokens - first` of the weight, times `factor`: [...] int64 -> [..., width].

    A token that is not there (of another rank's share) gets zeros.

    Args:
        weight: [V, width].
        factor: multiplies in float32; the product is rounded to the weight's dtype.
    """
    width = weight.shape[1]
    out = weight.new_empty((*tokens.shape, width))
    if out.numel() == 0:
        return out
    block = min(_BLOCK, triton.next_power_of_2(width))
    embed_kernel[(tokens.numel(), triton.cdiv(width, block))](
        out,
        tokens.contiguous(),
        weight.contiguous(),
        first,
        len(weight),
        factor,
        WIDTH=width,
        SCALED=factor != 1.0,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
    return out


@embed_triton.register_fake
def _(tokens, weight, factor=1.0, first=0):
    return weight.new_empty((*tokens.shape, weight.shape[1]))
