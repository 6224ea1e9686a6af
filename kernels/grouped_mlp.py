"""The experts of a mixture, each run over its own tokens: one interface to its implementations.

Shapes: N tokens, K experts a token, E experts, H hidden, I intermediate (this rank's share).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.fused import runs_fused
from assembler.kernels.gating import Gating
from assembler.kernels.grouped_mlp_meta import grouped_mlp_meta
from assembler.kernels.grouped_mlp_torch import grouped_mlp_torch


def grouped_mlp(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    gating: Gating,
    *,
    weigh_input: bool = False,
) -> torch.Tensor:
    """The weighted sum of what each token's experts make of it -> [N, H].

    Triton kernels do the work where fused kernels run (`runs_fused`) and know the activation, plain
    torch everywhere else; on the meta device nothing is computed.

    Args:
        x: [N, H].
        chosen: [N, K] int64, the experts of each token, all different.
        weights: [N, K] float32, what each of them counts.
        experts: the parameters, in the dtype of x.
        gating: what is between the projections.
        weigh_input: weigh each expert's input instead of its output.
    """
    run = kernel_for(x, weights, experts, gating.name)
    return run(x, chosen, weights, experts, gating, weigh_input=weigh_input)


def kernel_for(
    x: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights, activation: str
) -> Callable[..., torch.Tensor]:
    """The implementation that `grouped_mlp` takes for these tensors."""
    if x.device.type == "meta":
        return grouped_mlp_meta
    parameters = experts.gate_up, experts.down, experts.gate_up_bias, experts.down_bias
    if weights.dtype == torch.float32 and runs_fused(x, *parameters, beside=(weights,)):
        # Triton is imported by those who use it only: it is not there on every platform.
        from assembler.kernels.activation_triton import KNOWN_ACTIVATIONS
        from assembler.kernels.operations import run_experts

        if activation in KNOWN_ACTIVATIONS:
            return run_experts
    return grouped_mlp_torch
