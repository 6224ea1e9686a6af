"""Choosing experts, and the experts themselves, on the device against references in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from gpu_errors import TOLERANCE, Check, largest_error, name_of
from gpu_inputs import choices, experts
from torch.nn import functional as F

from assembler.blocks.activations import ACTIVATIONS
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.grouped_mlp_torch import grouped_mlp_torch
from assembler.kernels.routing import ChoiceRule, choose_experts_torch

SILU = Gating("silu", F.silu)
CLAMPED = Gating("quick_gelu", ACTIVATIONS["quick_gelu"], limit=1.0, up_offset=1.0)


@dataclass(frozen=True)
class Form:
    """What differs between mixtures."""

    name: str
    tokens: int
    gating: Gating = SILU
    biases: bool = False
    weigh_input: bool = False


def expert_checks(
    device: torch.device, dtype: torch.dtype, smoke: bool, all_forms: bool
) -> Iterator[Check]:
    """Enough tokens for tall tiles; few, many, the other forms and choices if `all_forms`."""
    from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton

    tokens, count, hidden, inner = (5, 4, 32, 16) if smoke else (1500, 32, 512, 256)
    forms = [Form("", tokens)]
    if all_forms:
        forms += [
            Form(" of one token", 1),
            Form(" of many tokens", 300 if smoke else 9000),
            Form(", clamped, biases", max(tokens // 5, 1), CLAMPED, biases=True),
            Form(", weighed before", max(tokens // 20, 1), weigh_input=True),
        ]
    for form in forms:
        stacked = experts(count, hidden, inner, device, dtype, biases=form.biases)
        exact = _in_float64(stacked)
        chosen, weights = choices(form.tokens, 2, count, device)
        x = torch.randn(form.tokens, hidden, device=device).to(dtype)

        def error(form=form, x=x, chosen=chosen, weights=weights, stacked=stacked, exact=exact):
            about = {"weigh_input": form.weigh_input}
            got = grouped_mlp_triton(x, chosen, weights, stacked, form.gating, **about)
            given = (x.double(), chosen, weights.double(), exact, form.gating)
            return largest_error(got, grouped_mlp_torch(*given, **about))

        yield f"grouped MLP{form.name}, {name_of(dtype)}", error, TOLERANCE[dtype]
    if all_forms:
        yield from _choice_checks(device, *((5, 16) if smoke else (300, 256)))


def _choice_checks(device: torch.device, tokens: int, count: int) -> Iterator[Check]:
    """Softmax and sigmoid routers, the latter with a bias and groups, as weights of all experts.

    In float32, where no two experts are as good as each other.
    """
    from assembler.kernels.routing_triton import run_choice

    logits = torch.randn(tokens, count, device=device)
    bias = torch.randn(count, device=device)
    groups = {"groups": 8, "top_groups": 4, "group_score": "top2"}
    rules = {
        "softmax": (None, ChoiceRule(4, softmax=True, normalise=True)),
        "sigmoid, bias, groups": (bias, ChoiceRule(4, False, True, scale=2.5, **groups)),
    }

    def weights(choose: Callable, logits: torch.Tensor, *how: object) -> torch.Tensor:
        found, chosen = choose(logits, *how)
        return torch.zeros_like(logits).scatter_(1, chosen, found.type_as(logits))

    for name, how in rules.items():
        yield (
            f"choice of experts, {name}",
            lambda how=how: largest_error(
                weights(run_choice, logits, *how), weights(choose_experts_torch, logits, *how)
            ),
            TOLERANCE[torch.float32],
        )


def _in_float64(weights: ExpertWeights) -> ExpertWeights:
    leaves = (getattr(weights, field.name) for field in fields(weights))
    return ExpertWeights(*(None if leaf is None else leaf.double() for leaf in leaves))
