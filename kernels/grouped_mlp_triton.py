"""The experts of a mixture as Triton kernels: a grouped GEMM up, the gating in it, and one down.

Tokens are sorted by expert and cut into tiles that never straddle two experts, as in MegaBlocks
(Gale et al., 2022) and vLLM's fused MoE. Which tile is whose is worked out on the device, so the
host waits for nothing and the launch can be captured in a CUDA graph. Each choice of a token gets a
row of its own and the rows of a token are summed at the end, in a fixed order: no atomics, the same
bits every time.

Same contract as `grouped_mlp_torch`, which it is tested beside. It has no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.activation_triton import KNOWN_ACTIVATIONS, activate
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.grouped_mlp_tiling import choose_tiling, sort_into_tiles


@triton.jit
def _tile(tile_expert_ptr, tile_row_ptr, expert_end_ptr, BLOCK_M: tl.constexpr):
    """The expert of this program's tile, its rows and which of them the expert has."""
    expert = tl.load(tile_expert_ptr + tl.program_id(1))
    rows = tl.load(tile_row_ptr + tl.program_id(1)) + tl.arange(0, BLOCK_M)
    live = rows < tl.load(expert_end_ptr + expert)
    return expert.to(tl.int64), rows, live


@triton.jit
def _multiply(a, b, acc, WIDEN: tl.constexpr):
    """acc + a @ b, exact products."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _weight_tile(ptr, columns, features, COLUMNS: tl.constexpr, FEATURES: tl.constexpr):
    """[features, columns] of a row-major [COLUMNS, FEATURES] matrix."""
    mask = (features[:, None] < FEATURES) & (columns[None, :] < COLUMNS)
    return tl.load(ptr + columns[None, :] * FEATURES + features[:, None], mask=mask, other=0.0)


@triton.jit
def experts_up_kernel(
    inner_ptr,  # [rows, I], rows sorted by expert
    x_ptr,  # [N, H]
    gate_up_ptr,  # [E, 2I, H]
    bias_ptr,  # [E, 2I]
    weights_ptr,  # [N * K] float32
    order_ptr,  # [rows] int32, the slot n * K + j that stands in each row
    tile_expert_ptr,  # [tiles] int32; E for tiles that nobody needs
    tile_row_ptr,  # [tiles] int32
    expert_end_ptr,  # [E + 1] int32, the row after an expert's last; 0 for E
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: a tile of rows and BLOCK_N columns of their gated inner features."""
    expert, rows, live = _tile(tile_expert_ptr, tile_row_ptr, expert_end_ptr, BLOCK_M)
    if tl.sum(live.to(tl.int32), 0) == 0:
        return
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = tl.load(order_ptr + rows, mask=live, other=0)
    x_rows = x_ptr + (slots // TOP_K).to(tl.int64)[:, None] * HIDDEN
    gate_ptr = gate_up_ptr + expert * (2 * INNER * HIDDEN)
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        features = start + tl.arange(0, BLOCK_K)
        x_mask = live[:, None] & (features[None, :] < HIDDEN)
        x = tl.load(x_rows + features[None, :], mask=x_mask, other=0.0)
        w = _weight_tile(gate_ptr, columns, features, INNER, HIDDEN)
        gate = _multiply(x, w, gate, WIDEN)
        w = _weight_tile(gate_ptr + INNER * HIDDEN, columns, features, INNER, HIDDEN)
        up = _multiply(x, w, up, WIDEN)
    if WEIGH:  # the projections are linear: weighing what comes out is weighing what goes in
        weight = tl.load(weights_ptr + slots, mask=live, other=0.0)
        gate, up = gate * weight[:, None], up * weight[:, None]
    inside = columns < INNER
    if HAS_BIAS:
        bias = bias_ptr + expert * (2 * INNER) + columns
        gate += tl.load(bias, mask=inside, other=0.0).to(tl.float32)
        up += tl.load(bias + INNER, mask=inside, other=0.0).to(tl.float32)
    if HAS_LIMIT:
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
    inner = activate(gate, ACTIVATION) * (up + up_offset)
    target = inner_ptr + rows.to(tl.int64)[:, None] * INNER + columns[None, :]
    tl.store(target, inner.to(inner_ptr.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit
def experts_down_kernel(
    out_ptr,  # [N * K, H], by slot
    inner_ptr,  # [rows, I], rows sorted by expert
    down_ptr,  # [E, H, I]
    bias_ptr,  # [E, H]
    weights_ptr,  # [N * K] float32
    order_ptr,  # as in `experts_up_kernel`, these four
    tile_expert_ptr,
    tile_row_ptr,
    expert_end_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WEIGH: tl.constexpr,  # scale each row's output by its weight
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: a tile of rows and BLOCK_N columns of their output, put back in slot order."""
    expert, rows, live = _tile(tile_expert_ptr, tile_row_ptr, expert_end_ptr, BLOCK_M)
    if tl.sum(live.to(tl.int32), 0) == 0:
        return
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = tl.load(order_ptr + rows, mask=live, other=0)
    inner_rows = inner_ptr + rows.to(tl.int64)[:, None] * INNER
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, INNER, BLOCK_K):
        features = start + tl.arange(0, BLOCK_K)
        mask = live[:, None] & (features[None, :] < INNER)
        inner = tl.load(inner_rows + features[None, :], mask=mask, other=0.0)
        w = _weight_tile(down_ptr + expert * (HIDDEN * INNER), columns, features, HIDDEN, INNER)
        acc = _multiply(inner, w, acc, WIDEN)
    inside = columns < HIDDEN
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * HIDDEN + columns, mask=inside, other=0.0)
        acc += bias.to(tl.float32)
    if WEIGH:
        acc *= tl.load(weights_ptr + slots, mask=live, other=0.0)[:, None]
    target = out_ptr + slots.to(tl.int64)[:, None] * HIDDEN + columns[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & inside[None, :])


def grouped_mlp_triton(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    gating: Gating,
    *,
    weigh_input: bool = False,
) -> torch.Tensor:
    """Same contract as `grouped_mlp`; the gating is one of `KNOWN_ACTIVATIONS`."""
    matrices = experts.gate_up, experts.down
    biases = experts.gate_up_bias, experts.down_bias
    form = gating.name, gating.limit, gating.up_offset
    return launch_experts(x, chosen, weights, *matrices, *biases, *form, weigh_input)


def launch_experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    activation: str,
    limit: float | None,
    up_offset: float,
    weigh_input: bool,
) -> torch.Tensor:
    """`grouped_mlp_triton` with the fields of `ExpertWeights` and `Gating` spread out."""
    (num_tokens, top_k), (num_experts, hidden, inner_size) = chosen.shape, down.shape
    rows = num_tokens * top_k
    if rows == 0:
        return x.new_zeros(x.shape)
    assert gate_up.is_contiguous() and down.is_contiguous()
    x, weights = x.contiguous(), weights.contiguous()
    tiling = choose_tiling(rows, num_experts, x.element_size())
    order, tile_expert, tile_row, expert_end = sort_into_tiles(chosen, num_experts, tiling.BLOCK_M)
    inner = x.new_empty(rows, inner_size)
    out = x.new_empty(rows, hidden)
    # Triton's interpreter takes the bits of a bfloat16 for an integer in tl.dot.
    widen = triton.knobs.runtime.interpret and x.dtype == torch.bfloat16
    options = {**tiling._asdict(), "WIDEN": widen, "enable_fp_fusion": True}
    experts_up_kernel[(triton.cdiv(inner_size, tiling.BLOCK_N), len(tile_row))](
        inner,
        x,
        gate_up,
        gate_up if gate_up_bias is None else gate_up_bias,
        weights,
        order,
        tile_expert,
        tile_row,
        expert_end,
        limit or 0.0,
        up_offset,
        HIDDEN=hidden,
        INNER=inner_size,
        TOP_K=top_k,
        ACTIVATION=KNOWN_ACTIVATIONS[activation],
        HAS_BIAS=gate_up_bias is not None,
        HAS_LIMIT=limit is not None,
        WEIGH=weigh_input,
        **options,
    )
    experts_down_kernel[(triton.cdiv(hidden, tiling.BLOCK_N), len(tile_row))](
        out,
        inner,
        down,
        down if down_bias is None else down_bias,
        weights,
        order,
        tile_expert,
        tile_row,
        expert_end,
        HIDDEN=hidden,
        INNER=inner_size,
        HAS_BIAS=down_bias is not None,
        WEIGH=not weigh_input,
        **options,
    )
    return out.view(num_tokens, top_k, hidden).sum(dim=1)
