"""Routers against those of transformers with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import transformers
from block_harness import build_context, fill, randn
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter

from assembler.blocks.context import Routing
from assembler.blocks.router import ExpertGroups, Router, SparseMixerRouter
from assembler.errors import SpecError
from assembler.kernels import fused

HIDDEN, EXPERTS, TOP_K, TOKENS = 24, 12, 3, 20


@pytest.fixture(autouse=True, params=["never", pytest.param("always", marks=pytest.mark.slow)])
def fused_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain torch, and by the kernel of GPUs."""
    monkeypatch.setattr(fused, "fused_choice", lambda: request.param)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """The kernels have none."""
    with torch.no_grad():
        yield


def context(num_experts: int = EXPERTS, top_k: int = TOP_K):
    return replace(build_context(HIDDEN), routing=Routing(num_experts, top_k))


def weigh_all(weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """[N, E]: what every expert counts, 0 for those not chosen."""
    assert all(len(set(row)) == len(row) for row in chosen.tolist())
    return torch.zeros(len(chosen), EXPERTS).scatter(1, chosen, weights.float())


def assert_same_routing(ours: torch.nn.Module, reference: torch.nn.Module, *more) -> None:
    fill(reference)
    state = {name.rpartition(".")[2]: value for name, value in reference.state_dict().items()}
    for name in ("selection_bias", "bias", "weight"):
        if getattr(ours, name, None) is not None:
            source = state.get(name, state.get("e_score_correction_bias"))
            getattr(ours, name).data.copy_(source.view(getattr(ours, name).shape))
    x = randn(TOKENS, HIDDEN)
    _, weights, chosen = reference(x, *more)
    got, picked = ours(x)
    assert got.dtype == torch.float32 and picked.shape == (TOKENS, len(chosen[0]))
    torch.testing.assert_close(
        weigh_all(got, picked), weigh_all(weights, chosen), rtol=1e-5, atol=1e-6
    )


def config(name: str, experts: str = "num_experts", **fields):
    return getattr(transformers, name)(
        hidden_size=HIDDEN, **{experts: EXPERTS, "num_experts_per_tok": TOP_K}, **fields
    )


@pytest.mark.parametrize("normalise", [True, False])
def test_softmax_over_all_experts(normalise):
    reference = OlmoeTopKRouter(config("OlmoeConfig", norm_topk_prob=normalise))
    assert_same_routing(Router(context(), scores="softmax", normalise=normalise), reference)


def test_softmax_normalised_as_mixtral():
    reference = MixtralTopKRouter(config("MixtralConfig", "num_local_experts"))
    assert_same_routing(Router(context(), scores="softmax", normalise=True), reference)


def test_softmax_of_the_chosen_logits_is_softmax_normalised():
    reference = GraniteMoeTopKRouter(config("GraniteMoeConfig", "num_local_experts"))
    assert_same_routing(Router(context(), scores="softmax", normalise=True), reference)


def test_bias_of_the_logits():
    reference = GptOssTopKRouter(config("GptOssConfig", "num_local_experts"))
    assert_same_routing(Router(context(), scores="softmax", normalise=True, bias=True), reference)


def test_sigmoid_of_the_chosen_logits_is_sigmoid_unnormalised():
    reference = Llama4Router(config("Llama4TextConfig", "num_local_experts"))
    ours = Router(context(), scores="sigmoid", normalise=False)
    fill(reference)
    ours.weight.data.copy_(reference.weight)
    x = randn(TOKENS, HIDDEN)
    torch.testing.assert_close(weigh_all(*ours(x)), reference(x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_experts_with_the_same_rounded_score_are_told_apart(scores):
    """Sigmoids of 25 and more are 1.0 in float32, softmaxes far behind the best are 0.0."""
    logits = torch.arange(25.0, 25.0 + 12 * 200, 200).flip(0).roll(-1)[None]  # the best is the last
    ours = Router(context(), scores=scores, normalise=False)
    ours.weight.data.copy_(torch.eye(EXPERTS, HIDDEN))
    weights, chosen = ours(torch.nn.functional.pad(logits, (0, HIDDEN - EXPERTS)))
    assert chosen.tolist() == [[11, 0, 1]]
    assert weights.tolist() == [[1.0, 1.0, 1.0] if scores == "sigmoid" else [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("normalise", [True, False])
def test_sigmoid_with_selection_bias_and_groups(normalise):
    about = {"n_group": 4, "topk_group": 2, "norm_topk_prob": normalise}
    reference = Glm4MoeTopkRouter(
        config("Glm4MoeConfig", "n_routed_experts", routed_scaling_factor=2.5, **about)
    )
    reference.e_score_correction_bias.copy_(randn(EXPERTS, seed=5) * 0.3)
    ours = Router(
        context(),
        scores="sigmoid",
        logits_dtype="float32",
        selection_bias=True,
        groups=ExpertGroups(count=4, top=2),
        normalise=normalise,
        scale=2.5,
    )
    assert_same_routing(ours, reference)


def test_groups_scored_by_their_best_expert():
    reference = DeepseekV2TopkRouter(
        config(
            "DeepseekV2Config",
            "n_routed_experts",
            num_attention_heads=4,
            topk_method="group_limited_greedy",
            n_group=4,
            topk_group=2,
            routed_scaling_factor=1.7,
        )
    )
    groups = ExpertGroups(count=4, top=2, score="max")
    ours = Router(context(), scores="softmax", normalise=False, groups=groups, scale=1.7)
    assert_same_routing(ours, reference)


def test_selection_bias_over_softmax_and_a_least_sum():
    reference = Ernie4_5_MoeTopKRouter(
        config("Ernie4_5_MoeConfig", "moe_num_experts", moe_k=TOP_K, moe_norm_min=0.4)
    )
    reference.moe_statics.e_score_correction_bias.data.copy_(randn(1, EXPERTS, seed=5) * 0.3)
    ours = Router(context(), scores="softmax", selection_bias=True, normalise=True, min_sum=0.4)
    assert_same_routing(ours, reference)


@pytest.mark.parametrize("jitter_eps", [0.01, 0.3])
def test_sparse_mixer(jitter_eps):
    reference = PhimoeTopKRouter(
        config("PhimoeConfig", "num_local_experts", router_jitter_noise=jitter_eps)
    ).eval()
    ours = SparseMixerRouter(context(top_k=2), jitter_eps=jitter_eps)
    assert_same_routing(ours, reference)


def test_float32_logits_do_not_depend_on_the_dtype_of_the_model():
    ours = Router(context(), scores="sigmoid", normalise=True, logits_dtype="float32")
    fill(ours).bfloat16()
    x = randn(TOKENS, HIDDEN).bfloat16()
    weights, chosen = ours(x)
    wide_weights, wide_chosen = ours.float()(x.float())
    assert torch.equal(weights, wide_weights) and torch.equal(chosen, wide_chosen)


def test_the_selection_bias_chooses_and_does_not_weigh():
    ours = Router(context(top_k=1), scores="sigmoid", normalise=False, selection_bias=True)
    fill(ours)
    ours.selection_bias.data.zero_()
    ours.selection_bias.data[4] = 10.0
    x = randn(TOKENS, HIDDEN)
    weights, chosen = ours(x)
    assert (chosen == 4).all()
    torch.testing.assert_close(weights[:, 0], (x @ ours.weight[4]).sigmoid())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (ExpertGroups(count=5, top=2), "5 groups cannot share 12 experts"),
        (ExpertGroups(count=12, top=3), "top2 needs groups of at least 2"),
        (ExpertGroups(count=2, top=3), r"groups\.top 3 is more than groups\.count 2"),
        (ExpertGroups(count=6, top=1), "top_k 3 is more than 1 groups of 2 hold"),
    ],
)
def test_groups_that_cannot_be(groups, message):
    with pytest.raises(SpecError, match=rf"layers\.0\.block: .*{message}"):
        Router(context(), scores="sigmoid", normalise=True, groups=groups)


def test_a_router_outside_of_a_mixture_is_refused():
    with pytest.raises(SpecError, match=r"layers\.0\.block: .* inside an MoE block"):
        Router(build_context(HIDDEN), scores="softmax", normalise=True)
