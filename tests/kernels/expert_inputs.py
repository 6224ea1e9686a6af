"""Random mixtures of experts, and what their definition makes of a token."""

from __future__ import annotations

import torch

from assembler.blocks.activations import ACTIVATIONS
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating

SMALL = (7, 40, 24)  # experts, hidden, inner


def random_case(
    num_tokens: int,
    top_k: int,
    bias: bool,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int, int] = SMALL,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ExpertWeights]:
    """x, chosen, weights and the experts; the last expert is never chosen."""
    generator = torch.Generator().manual_seed(0)
    num_experts, hidden, inner = size

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    scores = torch.rand(num_tokens, num_experts - 1, generator=generator)
    chosen = scores.topk(top_k, dim=-1).indices
    experts = ExpertWeights(
        (randn(num_experts, 2 * inner, hidden) * hidden**-0.5).to(dtype),
        (randn(num_experts, hidden, inner) * inner**-0.5).to(dtype),
        randn(num_experts, 2 * inner).to(dtype) if bias else None,
        randn(num_experts, hidden).to(dtype) if bias else None,
    )
    weights = torch.rand(num_tokens, top_k, generator=generator) + 0.1
    return randn(num_tokens, hidden).to(dtype), chosen, weights, experts


def by_definition(x, chosen, weights, experts, gating, weigh_input=False) -> torch.Tensor:
    """One token and one expert at a time, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for n, j in torch.cartesian_prod(*map(torch.arange, chosen.shape)).tolist():
        expert, weight = int(chosen[n, j]), weights[n, j].double()
        inner = experts.gate_up[expert].double() @ (x[n].double() * (weight if weigh_input else 1))
        if experts.gate_up_bias is not None:
            inner += experts.gate_up_bias[expert].double()
        gate, up = inner.chunk(2)
        if gating.limit is not None:
            gate, up = gate.clamp(max=gating.limit), up.clamp(-gating.limit, gating.limit)
        y = experts.down[expert].double() @ (gating.act(gate) * (up + gating.up_offset))
        if experts.down_bias is not None:
            y += experts.down_bias[expert].double()
        out[n] += y if weigh_input else weight * y
    return out


def gating_of(name: str, limit: float | None = None, up_offset: float = 0.0) -> Gating:
    return Gating(name, ACTIVATIONS[name], limit, up_offset)
