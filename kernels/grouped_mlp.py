"""The experts of a mixture, each run over its own tokens: one interface, and who runs it where.

Shapes: N tokens, K experts a token, E experts, H hidden, I intermediate (this rank's share).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from assembler.kernels.expert_weights import ExpertWeights, Gating
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

    On CUDA and HIP devices Triton kernels do the work where they can (Triton is installed, nothing
    needs a gradient, the kernel knows the activation), plain torch everywhere else.

    Args:
        x: [N, H].
        chosen: [N, K] int64, the experts of each token, all different.
        weights: [N, K] float32, what each of them counts.
        experts: the parameters, in the dtype of x.
        gating: what is between the projections.
        weigh_input: weigh each expert's input instead of its output.
    """
    run = grouped_mlp_torch
    if x.is_cuda and _triton_is_there() and not _needs_gradient(x, weights, experts):
        from assembler.kernels.grouped_mlp_triton import KNOWN_ACTIVATIONS, grouped_mlp_triton

        if gating.name in KNOWN_ACTIVATIONS:
            run = grouped_mlp_triton
    return run(x, chosen, weights, experts, gating, weigh_input=weigh_input)


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None


def _needs_gradient(x: torch.Tensor, weights: torch.Tensor, experts: ExpertWeights) -> bool:
    tensors = (x, weights, experts.gate_up, experts.down)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
