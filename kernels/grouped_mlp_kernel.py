"""The grouped products of a mixture of experts as Triton kernels: up, with the gating, and down.

Rows are sorted by expert and cut into tiles that never straddle two experts, as in MegaBlocks
(Gale et al., 2022) and vLLM's fused MoE; the tables that say so are made by `launch_alignment`.
Launched by `grouped_mlp_triton`.

Shapes: N tokens, K experts a token, E experts, H hidden, I intermediate (this rank's share).
"""

from __future__ import annotations

import triton
import triton.language as tl

from assembler.kernels.activation_triton import activate


@triton.jit
def _place(num_tiles, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """The tile of rows and the block of columns of this program.

    GROUP tiles take turns at the same columns: those of one expert then find its weights in the L2
    cache, however large the expert is.
    """
    program = tl.program_id(0)
    first = program // (GROUP * COLUMNS) * GROUP
    size = tl.minimum(num_tiles - first, GROUP)
    within = program % (GROUP * COLUMNS)
    return first + within % size, within // size


@triton.jit
def _multiply(a, b, acc, WIDEN: tl.constexpr):
    """acc + a @ b, exact products."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _product(
    a_rows,  # [BLOCK_M] pointers to rows of WIDTH numbers
    b_rows,  # [BLOCK_N] the same
    width,  # WIDTH, not known to the compiler: it would unroll the loop from end to end
    WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """[BLOCK_M, BLOCK_N] float32: each row of a times each row of b."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    features = tl.arange(0, BLOCK_K)
    a_ptr = a_rows[:, None] + features[None, :]
    b_ptr = b_rows[None, :] + features[:, None]
    for start in range(0, width, BLOCK_K):
        if WIDTH % BLOCK_K == 0:
            a = tl.load(a_ptr + start)
            b = tl.load(b_ptr + start)
        else:
            inside = features < WIDTH - start
            a = tl.load(a_ptr + start, mask=inside[None, :], other=0.0)
            b = tl.load(b_ptr + start, mask=inside[:, None], other=0.0)
        acc = _multiply(a, b, acc, WIDEN)
    return acc


@triton.jit
def experts_up_kernel(
    inner_ptr,  # [rows, I], rows sorted by expert
    x_ptr,  # [N, H]
    gate_up_ptr,  # [E, 2I, H]
    bias_ptr,  # [E, 2I]
    weights_ptr,  # [N * K] float32
    order_ptr,  # [rows] int32, the slot n * K + j that stands in each row
    tile_expert_ptr,  # [tiles] int32; E for tiles that nobody needs
    tile_row_ptr,  # [tiles] int32, the first row of each; 0 for those
    expert_end_ptr,  # [E + 1] int32, the row after an expert's last; 0 for E
    num_tiles,
    width,  # HIDDEN
    x_stride,
    limit,
    up_offset,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    WEIGH: tl.constexpr,  # scale each row's input by its weight
    WIDEN: tl.constexpr,  # multiply in float32 whatever the inputs are
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: a tile of rows and BLOCK_N / 2 columns of their gated inner features."""
    HALF: tl.constexpr = BLOCK_N // 2
    tile, block = _place(num_tiles, tl.cdiv(INNER, HALF), GROUP)
    expert = tl.load(tile_expert_ptr + tile).to(tl.int64)
    first, end = tl.load(tile_row_ptr + tile), tl.load(expert_end_ptr + expert)
    if first >= end:
        return
    rows = first + tl.arange(0, BLOCK_M)
    live = rows < end
    # Rows and columns beyond the last one repeat another: they are read, and not written.
    slots = tl.load(order_ptr + tl.minimum(rows, end - 1))
    # A gate and its up lie side by side: one product gives both, to the same thread.
    lanes = tl.arange(0, BLOCK_N)
    features = tl.minimum(block * HALF + lanes // 2, INNER - 1) + lanes % 2 * INNER
    acc = _product(
        x_ptr + (slots // TOP_K).to(tl.int64) * x_stride,
        gate_up_ptr + expert * (2 * INNER * HIDDEN) + features * HIDDEN,
        width,
        HIDDEN,
        WIDEN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    gate, up = tl.split(tl.reshape(acc, (BLOCK_M, HALF, 2)))
    if WEIGH:  # the projections are linear: weighing what comes out is weighing what goes in
        weight = tl.load(weights_ptr + slots)
        gate, up = gate * weight[:, None], up * weight[:, None]
    columns = block * HALF + tl.arange(0, HALF)
    inside = columns < INNER
    if HAS_BIAS:
        bias = bias_ptr + expert * (2 * INNER) + columns
        gate += tl.load(bias, mask=inside, other=0.0).to(tl.float32)
        up += tl.load(bias + INNER, mask=inside, other=0.0).to(tl.float32)
    if HAS_LIMIT:
        nan: tl.constexpr = tl.PropagateNan.ALL
        gate = tl.minimum(gate, limit, nan)
        up = tl.minimum(tl.maximum(up, -limit, nan), limit, nan)
    inner = activate(gate, ACTIVATION) * (up + up_offset)
    target = inner_ptr + rows.to(tl.int64)[:, None] * INNER + columns[None, :]
    tl.store(target, inner.to(inner_ptr.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit
def experts_down_kernel(
    out_ptr,  # [N * K, H], by slot
    inner_ptr,  # [rows, I], rows sorted by expert
    down_ptr,  # [E, H, I]
    bias_ptr,  # [E, H]
    order_ptr,  # as in `experts_up_kernel`, these five
    tile_expert_ptr,
    tile_row_ptr,
    expert_end_ptr,
    num_tiles,
    width,  # INNER
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: a tile of rows and BLOCK_N columns of their output, put back in slot order."""
    tile, block = _place(num_tiles, tl.cdiv(HIDDEN, BLOCK_N), GROUP)
    expert = tl.load(tile_expert_ptr + tile).to(tl.int64)
    first, end = tl.load(tile_row_ptr + tile), tl.load(expert_end_ptr + expert)
    if first >= end:
        return
    rows = first + tl.arange(0, BLOCK_M)
    live = rows < end
    rows = tl.minimum(rows, end - 1)  # as on the way up: read again, and not written
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = _product(
        inner_ptr + rows.to(tl.int64) * INNER,
        down_ptr + expert * (HIDDEN * INNER) + tl.minimum(columns, HIDDEN - 1) * INNER,
        width,
        INNER,
        WIDEN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    inside = columns < HIDDEN
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * HIDDEN + columns, mask=inside, other=0.0)
        acc += bias.to(tl.float32)
    slots = tl.load(order_ptr + rows)
    target = out_ptr + slots.to(tl.int64)[:, None] * HIDDEN + columns[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & inside[None, :])
