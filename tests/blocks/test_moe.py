"""The mixture of experts against transformers, split over ranks, and its training."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from block_harness import build_context, fill, randn, run_ranks
from transformers import GptOssConfig, Llama4TextConfig, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from assembler.blocks.experts import GatedExperts
from assembler.blocks.moe import MoE
from assembler.blocks.parallel import TensorParallel
from assembler.blocks.router import Router
from assembler.errors import SpecError

HIDDEN, INNER, EXPERTS, TOP_K = 40, 24, 6, 2
SOFTMAX = partial(Router, scores="softmax", normalise=True)
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
}


def mixture(tp: TensorParallel | None = None, router=SOFTMAX, weight_on="output", **experts) -> MoE:
    fields = {"intermediate_size": INNER, "activation": "silu", **experts}
    return MoE(
        build_context(HIDDEN, tp=tp, path="layers.0.moe"),
        num_experts=EXPERTS,
        top_k=TOP_K,
        router=router,
        experts=partial(GatedExperts, **fields),
        weight_on=weight_on,
    )


def load(ours: MoE, **values: torch.Tensor) -> MoE:
    """Fill the parameters whose names end so."""
    parameters = dict(ours.named_parameters())
    assert {name.replace(".", "_") for name in parameters} == values.keys()
    for name, parameter in parameters.items():
        parameter.data.copy_(values[name.replace(".", "_")])
    return ours


@torch.no_grad()
def test_equals_mixtral():
    reference = fill(MixtralSparseMoeBlock(MixtralConfig(**SIZES)).eval())
    ours = load(
        mixture(),
        router_weight=reference.gate.weight,
        experts_gate_up_weight=reference.experts.gate_up_proj,
        experts_down_weight=reference.experts.down_proj,
    )
    x = randn(2, 9, HIDDEN)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x[0]), ours(x)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equals_gpt_oss():
    reference = fill(GptOssMLP(GptOssConfig(swiglu_limit=0.5, **SIZES)).eval())
    source = reference.experts
    ours = load(
        mixture(
            router=partial(SOFTMAX, bias=True),
            activation="quick_gelu",
            bias=True,
            limit=0.5,
            up_offset=1.0,
        ),
        router_weight=reference.router.weight,
        router_bias=reference.router.bias,
        experts_gate_up_weight=torch.cat(
            (source.gate_up_proj[..., ::2], source.gate_up_proj[..., 1::2]), -1
        ).mT,
        experts_gate_up_bias=torch.cat(
            (source.gate_up_proj_bias[:, ::2], source.gate_up_proj_bias[:, 1::2]), -1
        ),
        experts_down_weight=source.down_proj.mT,
        experts_down_bias=source.down_proj_bias,
    )
    x = randn(2, 9, HIDDEN)
    torch.testing.assert_close(ours(x), reference(x)[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_weights_on_the_input_equal_llama4():
    reference = fill(Llama4TextMoe(Llama4TextConfig(**SIZES)).eval())
    for parameter in reference.shared_expert.parameters():
        parameter.zero_()
    ours = load(
        mixture(router=partial(Router, scores="sigmoid", normalise=False), weight_on="input"),
        router_weight=reference.router.weight,
        experts_gate_up_weight=reference.experts.gate_up_proj.mT,
        experts_down_weight=reference.experts.down_proj.mT,
    )
    x = randn(2, 9, HIDDEN)
    torch.testing.assert_close(ours(x).view(18, -1), reference(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight_on", ["output", "input"])
@pytest.mark.parametrize("size", [2, 5])
def test_split_over_ranks(size, weight_on):
    x = randn(2, 9, HIDDEN)
    build = partial(
        mixture,
        router=partial(Router, scores="sigmoid", normalise=True, selection_bias=True),
        weight_on=weight_on,
        bias=True,
    )
    whole = fill(build(TensorParallel()))
    with torch.no_grad():
        expected = whole(x)
    for got in run_ranks(size, whole, build, lambda moe: moe(x)):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_every_parameter_that_was_used_trains():
    moe = fill(mixture(router=partial(SOFTMAX, bias=True), bias=True))
    moe(randn(30, HIDDEN)).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in moe.parameters())


def test_more_choices_than_experts_are_refused():
    with pytest.raises(SpecError, match=r"block: top_k 3 is more than num_experts 2"):
        MoE(build_context(), num_experts=2, top_k=3, router=SOFTMAX, experts=GatedExperts)


def test_width_that_ranks_cannot_share_is_refused():
    with pytest.raises(SpecError, match=r"layers\.0\.moe\.experts: 'gate' has 24 rows"):
        mixture(TensorParallel(size=30))
