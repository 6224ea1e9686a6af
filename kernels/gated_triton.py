"""What a gated linear unit does between its projections, as one Triton kernel.

Gate and up are read where the projection wrote them, side by side in one matrix, and the product is
written once. Results of the activation, of `up + offset` and of the product are rounded as plain
torch rounds them; inside an activation nothing is.

The operation is `torch.ops.assembler.gated`; it has no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.activation_triton import KNOWN_ACTIVATIONS, activate
from assembler.kernels.fused import as_rows
from assembler.kernels.traced import operation

_BLOCK = 1024


@triton.jit
def gated_kernel(
    out_ptr,  # [N, WIDTH]
    gate_ptr,  # [N, WIDTH]
    up_ptr,  # [N, WIDTH]
    gate_stride,
    up_stride,
    limit,
    up_offset,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK numbers of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_LIMIT:
        nan: tl.constexpr = tl.PropagateNan.ALL
        gate = tl.minimum(gate, limit, nan).to(dtype).to(tl.float32)
        up = tl.minimum(tl.maximum(up, -limit, nan), limit, nan).to(dtype).to(tl.float32)
    if HAS_OFFSET:
        up = (up + up_offset).to(dtype).to(tl.float32)
    gate = activate(gate, ACTIVATION).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + columns, (gate * up).to(dtype), mask=mask)


@operation("assembler::gated")
def gated_triton(
    gate: torch.Tensor,
    up: torch.Tensor,
    activation: str,
    limit: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """act(gate) * (up + up_offset), [..., I] of two [..., I] that may be halves of one tensor.

    Args:
        activation: one of `KNOWN_ACTIVATIONS`.
        limit: gate is clamped to at most this and up to within it, before all else; None: not.
    """
    assert gate.shape == up.shape and gate.dtype == up.dtype
    out = gate.new_empty(gate.shape)
    if gate.numel() == 0:
        return out
    width = gate.shape[-1]
    gate, up = as_rows(gate), as_rows(up)
    block = min(_BLOCK, triton.next_power_of_2(width))
    gated_kernel[(len(gate), triton.cdiv(width, block))](
        out,
        gate,
        up,
        gate.stride(0),
        up.stride(0),
        0.0 if limit is None else limit,
        up_offset,
        WIDTH=width,
        ACTIVATION=KNOWN_ACTIVATIONS[activation],
        HAS_LIMIT=limit is not None,
        HAS_OFFSET=up_offset != 0.0,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
    return out


@gated_triton.register_fake
def _(gate, *_):
    return gate.new_empty(gate.shape)
