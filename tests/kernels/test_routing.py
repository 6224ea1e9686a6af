"""The choice of experts in one kernel: what its definition gives, for ties and NaN too."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from assembler.kernels import fused, routing_triton
from assembler.kernels.routing import (
    MAX_EXPERTS,
    ChoiceRule,
    choose_experts,
    choose_experts_torch,
)
from assembler.kernels.routing_triton import choose_experts_triton, run_choice

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")
SOFTMAX = ChoiceRule(top_k=3, softmax=True, normalise=False)
SIGMOID = ChoiceRule(top_k=3, softmax=False, normalise=True, scale=2.5)
TWO = {"groups": 4, "top_groups": 2, "group_score": "top2"}
RULES = {
    "softmax": SOFTMAX,
    "normalised": replace(SOFTMAX, normalise=True, min_sum=0.4),
    "sigmoid": SIGMOID,
    "max": replace(SOFTMAX, groups=4, top_groups=1),
    "top2": replace(SIGMOID, **TWO),
    "all groups": replace(SIGMOID, groups=4, top_groups=4),
}


def logits_of(tokens: int, experts: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[tokens, experts] of numbers that no two are equal, in wider rows with NaN around them."""
    generator = torch.Generator().manual_seed(tokens + experts)
    around = torch.full((tokens, experts + 5), torch.nan, dtype=dtype)
    numbers = torch.rand(tokens, experts, generator=generator).argsort(dim=-1)
    around[:, 2:-3] = (numbers * (4.0 / experts) - 2).to(dtype)
    return around[:, 2:-3]


def bias_of(experts: int) -> torch.Tensor:
    return torch.randn(experts, generator=torch.Generator().manual_seed(experts))


def by_definition(logits, bias, rule: ChoiceRule) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64; sorted stably, so that of equal experts the first is taken."""
    logits = logits.double()
    scores = logits.softmax(-1) if rule.softmax else logits.sigmoid()
    preferred = logits if bias is None and not rule.limited else scores.clone()
    if bias is not None:
        preferred += bias.double()
    if rule.limited:
        grouped = preferred.view(len(logits), rule.groups, -1)
        best = grouped.sort(dim=-1, descending=True).values
        of_groups = best[..., 0] if rule.group_score == "max" else best[..., :2].sum(-1)
        order = of_groups.sort(dim=-1, descending=True, stable=True).indices
        for row, groups in enumerate(order[:, rule.top_groups :].tolist()):
            grouped[row, groups] = -torch.inf
    chosen = preferred.sort(dim=-1, descending=True, stable=True).indices[:, : rule.top_k]
    weights = scores.gather(-1, chosen)
    if rule.normalise:
        weights /= weights.sum(-1, keepdim=True).clamp(min=rule.min_sum)
    return weights * rule.scale, chosen


def check(logits, bias, rule: ChoiceRule) -> None:
    weights, chosen = run_choice(logits, bias, rule)
    wanted, experts = by_definition(logits, bias, rule)
    assert weights.dtype == torch.float32 and chosen.dtype == torch.int64
    assert torch.equal(chosen, experts)
    torch.testing.assert_close(weights.double(), wanted, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_equals_the_definition(name, bias):
    check(logits_of(4, 20), bias_of(20) if bias else None, RULES[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits(dtype):
    check(logits_of(4, 20, dtype), bias_of(20).to(dtype), RULES["top2"])


@pytest.mark.parametrize(
    ("experts", "top_k", "groups"), [(1, 1, 1), (2, 2, 1), (60, 8, 3), (160, 6, 8), (700, 22, 1)]
)
def test_sizes_that_are_no_powers_of_two(experts, top_k, groups):
    limit = {"groups": groups, "top_groups": max(1, groups // 2), "group_score": "top2"}
    rule = replace(SIGMOID, top_k=top_k, **(limit if groups > 1 else {}))
    check(logits_of(2, experts), bias_of(experts), rule)


@pytest.mark.slow
def test_many_tokens():
    check(logits_of(60, 24), None, RULES["normalised"])


def test_no_tokens():
    weights, chosen = run_choice(torch.empty(0, 20), None, SOFTMAX)
    assert weights.shape == chosen.shape == (0, 3)


@pytest.mark.parametrize("name", RULES)
def test_of_equal_experts_the_first_are_taken(name):
    """Zeros of both signs are equal; so are numbers of which only the first few differ."""
    equal = torch.zeros(3, 20)
    equal[1, ::2], equal[2] = -0.0, torch.arange(20).div(5, rounding_mode="floor") % 2
    for bias in (None, torch.zeros(20)):
        check(equal, bias, RULES[name])


@pytest.mark.parametrize("name", RULES)
def test_nan_is_passed_on_and_chooses_experts_that_exist(name):
    logits = logits_of(5, 20).clone()
    logits[0, 7] = torch.nan
    logits[1] = torch.nan
    logits[2, 4:] = -torch.nan
    logits[3, ::3] = torch.inf
    with np.errstate(invalid="ignore"):  # inf - inf inside a softmax
        weights, chosen = run_choice(logits, None, RULES[name])
    assert all(len(set(row)) == 3 and {*row} <= {*range(20)} for row in chosen.tolist())
    assert weights[1].isnan().all() and weights[0].isnan().any()
    if not RULES[name].limited and not RULES[name].softmax:
        assert chosen[0, 0] == 7 and chosen[1].tolist() == [0, 1, 2]
        assert chosen[2].tolist() == [4, 5, 6] and chosen[3].tolist() == [0, 3, 6]
    alone = run_choice(logits[4:], None, RULES[name])
    assert torch.equal(weights[4:], alone[0]) and torch.equal(chosen[4:], alone[1])


def test_experts_that_are_ruled_out_come_last():
    logits = torch.full((1, 6), -torch.inf)
    logits[0, 4] = 0.0
    weights, chosen = run_choice(logits, None, replace(SOFTMAX, normalise=True))
    assert chosen.tolist() == [[4, 0, 1]] and weights.tolist() == [[1.0, 0.0, 0.0]]


def test_a_bias_does_not_leave_the_groups():
    """However low the best group is, the others' experts are not taken."""
    bias = torch.full((20,), -1e30)
    weights, chosen = run_choice(logits_of(2, 20), bias, replace(RULES["top2"], top_groups=1))
    assert all(len({expert // 5 for expert in row}) == 1 for row in chosen.tolist())
    assert weights.isfinite().all()


def test_one_interface_to_both(monkeypatch):
    called = []
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")
    monkeypatch.setattr(routing_triton, "run_choice", lambda *about: called.append(about))
    choose_experts(logits_of(2, 20), None, SOFTMAX)
    assert len(called) == 1
    wide, learned = torch.zeros(1, MAX_EXPERTS + 1), torch.zeros(20, requires_grad=True)
    choose_experts(wide, None, SOFTMAX)
    choose_experts(logits_of(2, 20), learned, SOFTMAX)
    choose_experts(logits_of(2, 20).double(), None, SOFTMAX)
    assert len(called) == 1


@pytest.mark.parametrize("name", RULES)
def test_the_reference_equals_the_definition(name):
    for bias in (None, bias_of(20)):
        weights, chosen = choose_experts_torch(logits_of(9, 20), bias, RULES[name])
        wanted, experts = by_definition(logits_of(9, 20), bias, RULES[name])
        assert torch.equal(chosen, experts)
        torch.testing.assert_close(weights.double(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bias", [False, True])
def test_the_operation_is_what_torch_expects_of_it(bias):
    flat = astuple(RULES["top2"])
    arguments = (logits_of(2, 20), bias_of(20) if bias else None, *flat)
    torch.library.opcheck(torch.ops.assembler.choose_experts.default, arguments)
    assert choose_experts_triton(*arguments)[0].shape == (2, 3)
