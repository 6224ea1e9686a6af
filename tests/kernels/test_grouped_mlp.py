"""Experts over grouped tokens: torch and Triton give what the definition gives, token by token."""

from __future__ import annotations

import pytest
import torch
from expert_inputs import by_definition, gating_of, random_case
from torch.nn import functional as F

from assembler.blocks.activations import ACTIVATIONS
from assembler.kernels.grouped_mlp import grouped_mlp
from assembler.kernels.grouped_mlp_torch import grouped_mlp_torch
from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")
HIDDEN = 40
KERNELS = pytest.mark.parametrize("kernel", [grouped_mlp_torch, grouped_mlp_triton])


@KERNELS
@pytest.mark.parametrize("weigh_input", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("num_tokens", "top_k"), [(1, 1), (1, 4), (5, 2), (60, 3)])
def test_equals_the_definition(kernel, num_tokens, top_k, bias, weigh_input):
    x, chosen, weights, experts = random_case(num_tokens, top_k, bias)
    gating = gating_of("silu")
    got = kernel(x, chosen, weights, experts, gating, weigh_input=weigh_input)
    want = by_definition(x, chosen, weights, experts, gating, weigh_input)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@KERNELS
@pytest.mark.parametrize("name", ["quick_gelu", "silu"])
def test_clamped_gating_equals_the_definition(kernel, name):
    x, chosen, weights, experts = random_case(9, 2, bias=True)
    gating = gating_of(name, limit=0.6, up_offset=1.0)
    want = by_definition(x, chosen, weights, experts, gating)
    got = kernel(x, chosen, weights, experts, gating)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_triton_knows_every_activation(name):
    x, chosen, weights, experts = random_case(4, 2, bias=True)
    want = by_definition(x, chosen, weights, experts, gating_of(name))
    got = grouped_mlp_triton(x, chosen, weights, experts, gating_of(name))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_definition(kernel, dtype):
    x, chosen, weights, experts = random_case(33, 2, bias=True, dtype=dtype)
    want = by_definition(x, chosen, weights, experts, gating_of("silu"))
    got = kernel(x, chosen, weights, experts, gating_of("silu"))
    assert got.dtype == dtype
    error = (got.double() - want).abs().max() / want.std()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.005)


@KERNELS
def test_all_tokens_to_one_expert(kernel):
    x, _, weights, experts = random_case(70, 1, bias=False)
    chosen = torch.full((70, 1), 3)
    want = by_definition(x, chosen, weights, experts, gating_of("silu"))
    got = kernel(x, chosen, weights, experts, gating_of("silu"))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@KERNELS
def test_no_tokens(kernel):
    x, chosen, weights, experts = random_case(0, 2, bias=True)
    assert kernel(x, chosen, weights, experts, gating_of("silu")).shape == (0, HIDDEN)


@KERNELS
def test_weights_of_experts_without_tokens_are_not_read(kernel):
    x, chosen, weights, experts = random_case(6, 2, bias=True)
    want = kernel(x, chosen, weights, experts, gating_of("silu"))
    for tensor in vars(experts).values():
        tensor[-1] = float("nan")
    assert torch.equal(kernel(x, chosen, weights, experts, gating_of("silu")), want)


def test_gradients_equal_those_of_the_definition():
    x, chosen, weights, experts = random_case(6, 2, bias=True)
    leaves = [x, weights, *vars(experts).values()]
    for leaf in leaves:
        leaf.requires_grad_()
    pull = torch.linspace(-1, 1, HIDDEN)
    got = torch.autograd.grad(
        (grouped_mlp(x, chosen, weights, experts, gating_of("silu")) * pull).sum(), leaves
    )
    dense = torch.zeros(6, len(experts.down)).scatter(1, chosen, weights)
    inner = torch.einsum("nh,eih->nei", x, experts.gate_up) + experts.gate_up_bias
    gate, up = inner.chunk(2, dim=-1)
    y = torch.einsum("nei,ehi->neh", F.silu(gate) * up, experts.down) + experts.down_bias
    want = torch.autograd.grad(((y * dense[..., None]).sum(1) * pull).sum(), leaves)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@KERNELS
@pytest.mark.parametrize("limit", [None, 0.5])
def test_nan_is_passed_on_and_stays_with_its_token(kernel, limit):
    """A clamp makes no number of it; the rows around it in a tile know nothing of it."""
    x, chosen, weights, experts = random_case(12, 2, bias=True)
    want = kernel(x, chosen, weights, experts, gating_of("silu", limit))
    x[0, 3] = x[7] = torch.nan
    got = kernel(x, chosen, weights, experts, gating_of("silu", limit))
    assert got[[0, 7]].isnan().all()
    rest = [n for n in range(12) if n not in (0, 7)]
    torch.testing.assert_close(got[rest], want[rest], rtol=1e-6, atol=1e-6)


@KERNELS
@pytest.mark.parametrize("part", ["gate", "up"])
def test_nan_of_a_clamped_part_is_passed_on(kernel, part):
    x, chosen, weights, experts = random_case(6, 1, bias=True)
    expert, first = int(chosen[2]), 0 if part == "gate" else 24
    experts.gate_up_bias[expert, first + 5] = torch.nan
    got = kernel(x, chosen, weights, experts, gating_of("quick_gelu", 7.0, 1.0))
    assert torch.equal(got.isnan().all(-1), chosen[:, 0] == expert)


def test_rows_at_any_stride_with_nan_around_them():
    x, chosen, weights, experts = random_case(9, 2, bias=False)
    want = grouped_mlp_triton(x, chosen, weights, experts, gating_of("silu"))
    around = torch.full((9, HIDDEN + 7), torch.nan)
    around[:, 3:-4] = x
    turned = weights.t().contiguous().t(), chosen.t().contiguous().t()
    got = grouped_mlp_triton(around[:, 3:-4], turned[1], turned[0], experts, gating_of("silu"))
    assert torch.equal(got, want)


def test_the_same_bits_in_any_company():
    """A token's sum does not depend on which tile or place its rows have."""
    x, chosen, weights, experts = random_case(18, 3, bias=True)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(1))
    here = grouped_mlp_triton(x, chosen, weights, experts, gating_of("silu"))
    there = grouped_mlp_triton(x[order], chosen[order], weights[order], experts, gating_of("silu"))
    assert torch.equal(there, here[order])
