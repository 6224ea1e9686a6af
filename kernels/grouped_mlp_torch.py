"""The experts of a mixture in plain torch, on any device and with gradients.

The tokens are sorted by expert once; each expert that has any then reads its weights once, for all
of them. Experts without tokens are not touched, so a decode step of one token reads the weights of
its own experts only.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.routing_rows import sum_experts_torch


def grouped_mlp_torch(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    gating: Gating,
    *,
    weigh_input: bool = False,
) -> torch.Tensor:
    """Same contract as `grouped_mlp`."""
    (num_tokens, top_k), num_experts = chosen.shape, len(experts.down)
    slots = chosen.flatten()  # slot n * K + j is the j-th choice of token n
    order = slots.argsort(stable=True)
    counts = torch.bincount(slots, minlength=num_experts).tolist()
    rows = x[order // top_k]
    if weigh_input:
        rows = (rows * weights.flatten()[order, None]).type_as(x)
    outputs, start = [rows[:0]], 0
    for expert, count in enumerate(counts):
        if count:
            tokens = rows[start : start + count]
            outputs.append(_one_expert(tokens, experts, expert, gating))
            start += count
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    by_token = torch.cat(outputs)[place].unflatten(0, (num_tokens, top_k))
    return sum_experts_torch(by_token, None if weigh_input else weights)


def _one_expert(
    tokens: torch.Tensor, experts: ExpertWeights, expert: int, gating: Gating
) -> torch.Tensor:
    gate_up_bias = None if experts.gate_up_bias is None else experts.gate_up_bias[expert]
    down_bias = None if experts.down_bias is None else experts.down_bias[expert]
    gate, up = F.linear(tokens, experts.gate_up[expert], gate_up_bias).chunk(2, dim=-1)
    return F.linear(gating(gate, up), experts.down[expert], down_bias)
