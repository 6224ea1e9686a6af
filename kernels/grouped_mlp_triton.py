"""The experts of a mixture in Triton: sorted by expert, multiplied in tiles, summed by token.

Which tile is whose is worked out on the device (`launch_alignment`), so the host waits for nothing
and the launches can be captured in a CUDA graph. Each choice of a token gets a row of its own and
the rows of a token are summed at the end, in a fixed order (`launch_sum`): no atomics, the same
bits every time. That is four launches, five where there are more choices than one program can sort.

Same contract as `grouped_mlp_torch`, which it is tested beside. It has no backward.
"""

from __future__ import annotations

import torch
import triton

from assembler.kernels.activation_triton import KNOWN_ACTIVATIONS
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.fused import as_rows
from assembler.kernels.gating import Gating
from assembler.kernels.gpu import gpu_of
from assembler.kernels.grouped_mlp_kernel import experts_down_kernel, experts_up_kernel
from assembler.kernels.grouped_mlp_tiling import TILES_SHARING_COLUMNS, Tiling, choose_tiling
from assembler.kernels.routing_rows import Alignment
from assembler.kernels.routing_rows_triton import launch_alignment, launch_sum


def grouped_mlp_triton(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    gating: Gating,
    *,
    weigh_input: bool = False,
    tiling: Tiling | None = None,
) -> torch.Tensor:
    """Same contract as `grouped_mlp`; the gating is one of `KNOWN_ACTIVATIONS`.

    Args:
        tiling: how rows are cut; None: as `choose_tiling` has it for the device of x.
    """
    form = gating.name, gating.limit, gating.up_offset
    return _run(x, chosen, weights, experts, form, weigh_input, tiling)


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
    experts = ExpertWeights(gate_up, down, gate_up_bias, down_bias)
    return _run(x, chosen, weights, experts, (activation, limit, up_offset), weigh_input, None)


def _run(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    form: tuple[str, float | None, float],  # of a `Gating`: name, limit, up_offset
    weigh_input: bool,
    tiling: Tiling | None,
) -> torch.Tensor:
    """[N, H]: aligned, through both products, and summed."""
    (num_tokens, top_k), (num_experts, hidden, _) = chosen.shape, experts.down.shape
    rows = num_tokens * top_k
    if rows == 0:
        return x.new_zeros(x.shape)
    if tiling is None:
        tiling = choose_tiling(rows, num_experts, x.element_size(), gpu_of(x.device))
    table = launch_alignment(chosen, num_experts, tiling.BLOCK_M)
    # Triton's interpreter takes the bits of a bfloat16 for an integer in tl.dot.
    widen = triton.knobs.runtime.interpret and x.dtype == torch.bfloat16
    options = tiling._asdict() | {
        "WIDEN": widen,
        "GROUP": TILES_SHARING_COLUMNS,
        "enable_fp_fusion": True,  # Triton 3.9 warns of a change of default if it is not said
    }
    weights = weights.contiguous()
    input_weights = weights if weigh_input else None
    inner = _up(as_rows(x), top_k, input_weights, experts, form, Alignment(*table), options)
    out = _down(inner, experts, Alignment(*table), options)
    return launch_sum(out.view(num_tokens, top_k, hidden), None if weigh_input else weights)


def _up(
    x: torch.Tensor,
    top_k: int,
    weights: torch.Tensor | None,
    experts: ExpertWeights,
    form: tuple[str, float | None, float],
    table: Alignment,
    options: dict[str, object],
) -> torch.Tensor:
    """Gated inner features [rows, I], rows sorted by expert."""
    (activation, limit, up_offset), bias = form, experts.gate_up_bias
    (_, hidden, inner_size), num_tiles = experts.down.shape, len(table.tile_row)
    assert experts.gate_up.is_contiguous()
    inner = x.new_empty(len(table.order), inner_size)
    columns = triton.cdiv(inner_size, options["BLOCK_N"] // 2)
    experts_up_kernel[(columns * num_tiles,)](
        inner,
        x,
        experts.gate_up,
        experts.gate_up if bias is None else bias,
        x if weights is None else weights,
        *table,
        num_tiles,
        hidden,
        x.stride(0),
        0.0 if limit is None else limit,
        up_offset,
        HIDDEN=hidden,
        INNER=inner_size,
        TOP_K=top_k,
        ACTIVATION=KNOWN_ACTIVATIONS[activation],
        HAS_BIAS=bias is not None,
        HAS_LIMIT=limit is not None,
        WEIGH=weights is not None,
        **options,
    )
    return inner


def _down(
    inner: torch.Tensor, experts: ExpertWeights, table: Alignment, options: dict[str, object]
) -> torch.Tensor:
    """What each choice's expert makes of its row, [N * K, H], by slot."""
    (_, hidden, inner_size), num_tiles = experts.down.shape, len(table.tile_row)
    assert experts.down.is_contiguous()
    bias = experts.down_bias
    out = inner.new_empty(len(inner), hidden)
    experts_down_kernel[(triton.cdiv(hidden, options["BLOCK_N"]) * num_tiles,)](
        out,
        inner,
        experts.down,
        experts.down if bias is None else bias,
        *table,
        num_tiles,
        inner_size,
        HIDDEN=hidden,
        INNER=inner_size,
        HAS_BIAS=bias is not None,
        **options,
    )
    return out
