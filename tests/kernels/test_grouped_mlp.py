"""Experts over grouped tokens: torch and Triton give what the definition gives, token by token."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from assembler.blocks.activations import ACTIVATIONS
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.grouped_mlp import grouped_mlp, kernel_for
from assembler.kernels.grouped_mlp_tiling import choose_tiling
from assembler.kernels.grouped_mlp_torch import grouped_mlp_torch
from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton
from assembler.kernels.operations import run_experts

EXPERTS, HIDDEN, INNER = 7, 40, 24
KERNELS = pytest.mark.parametrize("kernel", [grouped_mlp_torch, grouped_mlp_triton])


def random_case(num_tokens: int, top_k: int, bias: bool, dtype=torch.float32, seed: int = 0):
    """x, chosen, weights and the experts; the last expert is never chosen."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    scores = torch.rand(num_tokens, EXPERTS - 1, generator=generator)
    chosen = scores.topk(top_k, dim=-1).indices
    experts = ExpertWeights(
        (randn(EXPERTS, 2 * INNER, HIDDEN) * HIDDEN**-0.5).to(dtype),
        (randn(EXPERTS, HIDDEN, INNER) * INNER**-0.5).to(dtype),
        randn(EXPERTS, 2 * INNER).to(dtype) if bias else None,
        randn(EXPERTS, HIDDEN).to(dtype) if bias else None,
    )
    weights = torch.rand(num_tokens, top_k, generator=generator) + 0.1
    return randn(num_tokens, HIDDEN).to(dtype), chosen, weights, experts


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
    dense = torch.zeros(6, EXPERTS).scatter(1, chosen, weights)
    inner = torch.einsum("nh,eih->nei", x, experts.gate_up) + experts.gate_up_bias
    gate, up = inner.chunk(2, dim=-1)
    y = torch.einsum("nei,ehi->neh", F.silu(gate) * up, experts.down) + experts.down_bias
    want = torch.autograd.grad(((y * dense[..., None]).sum(1) * pull).sum(), leaves)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 8, 300, 100_000])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_are_powers_of_two_of_at_least_16(rows, itemsize):
    tiling = choose_tiling(rows, 64, itemsize)
    assert all(size >= 16 and size & (size - 1) == 0 for size in tiling[:3])


@pytest.mark.parametrize(
    ("device", "activation", "needs_gradient", "kernel"),
    [
        ("cuda", "silu", False, run_experts),
        ("cuda", "silu", True, grouped_mlp_torch),  # the Triton kernels have no backward
        ("cuda", "one it does not know", False, grouped_mlp_torch),
        ("cpu", "silu", False, grouped_mlp_torch),
    ],
)
def test_the_kernel_is_chosen_by_device(device, activation, needs_gradient, kernel):
    assert kernel_for(torch.device(device), activation, needs_gradient) is kernel
