"""Whole blocks compiled without a graph break: the kernels are nodes of the one graph."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from block_harness import build_context, fill, randn
from test_attention_paged import PAGE_SIZE, paged_context
from torch._dynamo import lookup_backend

from assembler.blocks.attention import RopeAttn
from assembler.blocks.experts import GatedExperts
from assembler.blocks.moe import MoE
from assembler.blocks.norms import RMSNorm
from assembler.blocks.qk_norm import QKNorm
from assembler.blocks.rope import RopeSettings
from assembler.blocks.router import Router
from assembler.kernels import fused
from assembler.kernels.dispatch import attention_backend

HIDDEN = 40


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    """There is a limit to how often torch compiles a function anew."""
    torch.compiler.reset()


class Graphs:
    """A backend of torch.compile: `aot_eager`, and what the graphs call of ours."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        self.calls.append([n.split(".")[1] for n in names if n.startswith("assembler.")])
        return lookup_backend("aot_eager")(module, inputs)


def attention(**fields) -> RopeAttn:
    heads = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "rope": RopeSettings()}
    attn = fill(RopeAttn(build_context(HIDDEN), **heads, **fields))
    attn.cache_index = 0
    return attn


def caches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(8, PAGE_SIZE, 2, 8), torch.zeros(8, PAGE_SIZE, 2, 8))]


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["never", "always"])
def test_attention_in_a_paged_pass(choice, monkeypatch):
    monkeypatch.setattr(fused, "fused_choice", lambda: choice)
    qk_norm = partial(QKNorm, norm=partial(RMSNorm, eps=2e-3))
    attn, graphs = attention(qk_norm=qk_norm, window=5, sinks=True), Graphs()
    compiled = torch.compile(attn, fullgraph=True, backend=graphs)
    ours, plain, triton = caches(), caches(), attention_backend("triton", "cpu")
    with torch.no_grad():
        for steps in ([(0, 5), (0, 4)], [(5, 6), (4, 6)]):
            x = randn(sum(stop - start for start, stop in steps), HIDDEN, seed=steps[0][0])
            want = attn(x, paged_context(steps, plain))
            got = compiled(x, replace(paged_context(steps, ours), attention=triton))
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    store = "rope_store_kv" if choice == "always" else "store_kv"
    assert graphs.calls and all(
        [name for name in calls if "norm" not in name] == [store, "paged_attention"]
        for calls in graphs.calls
    )


@torch.no_grad()
def test_a_mixture_of_experts(monkeypatch):
    experts = partial(GatedExperts, intermediate_size=24, activation="silu", bias=True)
    router = partial(Router, scores="softmax", normalise=True)
    place = build_context(HIDDEN, path="layers.0.moe")
    moe, graphs = fill(MoE(place, num_experts=6, top_k=2, router=router, experts=experts)), Graphs()
    inputs = [randn(tokens, HIDDEN, seed=tokens) for tokens in (5, 3)]
    wanted = [moe(x) for x in inputs]
    monkeypatch.setattr(fused, "fused_choice", lambda: "always")
    compiled = torch.compile(moe, fullgraph=True, backend=graphs)
    for x, want in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(compiled(x), want, rtol=1e-5, atol=1e-5)
    assert graphs.calls
    assert all(calls == ["choose_experts", "grouped_mlp"] for calls in graphs.calls)
