"""The big kernels as operations of torch: what a trace sees of them, and that nobody else does."""

from __future__ import annotations

import pytest
import torch
from naive_attention import head_options, make_step
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from assembler.kernels import operations
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gated_triton import gated_triton
from assembler.kernels.gating import Gating
from assembler.kernels.grouped_mlp_triton import grouped_mlp_triton
from assembler.kernels.operations import attend, run_experts, store_kv
from assembler.kernels.paged_attention_triton import paged_attention_triton
from assembler.kernels.store_kv_triton import store_kv_triton
from assembler.kernels.traced import is_traced

ATTENTION = torch.ops.assembler.paged_attention.default
STORE = torch.ops.assembler.store_kv.default
EXPERTS = torch.ops.assembler.grouped_mlp.default
MIXED = ([3, 1], [5, 6])
OPTIONS = {
    "plain": AttentionOptions(scale=0.3),
    "every": head_options(4, "sinks", "alibi_slopes", window=5, chunk=4, softcap=3.0),
    "rounded": head_options(4, "alibi_slopes", alibi_rounded=True, k_scale=0.5, v_scale=2.0),
}


class Operations(TorchDispatchMode):
    """Collects the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def experts_of(bias: bool) -> tuple:
    """x, chosen, weights, ExpertWeights and Gating of four experts."""
    random = torch.Generator().manual_seed(0)
    sizes = ((4, 16, 24), (4, 24, 8), (4, 16), (4, 24))
    leaves = [torch.randn(size, generator=random) for size in sizes[: 4 if bias else 2]]
    x, weights = torch.randn(5, 24, generator=random), torch.rand(5, 2, generator=random)
    chosen = torch.rand(5, 4, generator=random).topk(2).indices
    gating = Gating("silu", torch.nn.functional.silu, 0.6 if bias else None, 1.0 if bias else 0.0)
    return x, chosen, weights, ExpertWeights(*leaves), gating


def check_attention(step, options) -> None:
    """torch's own check of the operation, as it is called."""
    called = []
    with pytest.MonkeyPatch.context() as patch, Operations():
        patch.setattr(operations, "paged_attention", lambda *flat: called.append(flat))
        attend(step.q, step.k_cache, step.v_cache, step.batch, options)
    torch.library.opcheck(ATTENTION, called[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_what_torch_expects_of_it(name):
    step = make_step(*MIXED)
    check_attention(step, OPTIONS[name])


def test_latent_attention_is_what_torch_expects_of_it():
    step = make_step(*MIXED, kv_heads=1, head_dim=40, head_dim_v=24, latent=True)
    check_attention(step, AttentionOptions(scale=0.3, value_dim=24))


@pytest.mark.parametrize("latent", [False, True])
def test_the_store_is_what_torch_expects_of_it(latent):
    k, k_cache = torch.randn(3, 2, 8), torch.zeros(2, 4, 2, 8)
    v, v_cache = (None, None) if latent else (torch.randn(3, 2, 8), torch.zeros(2, 4, 2, 8))
    torch.library.opcheck(STORE, (k, v, k_cache, v_cache, torch.tensor([5, -1, 0]), 1.0, 1.0))


@pytest.mark.parametrize("bias", [False, True])
def test_the_experts_are_what_torch_expects_of_them(bias):
    x, chosen, weights, experts, gating = experts_of(bias)
    flat = (gating.name, gating.limit, gating.up_offset, False)
    torch.library.opcheck(EXPERTS, (x, chosen, weights, *vars(experts).values(), *flat))


@pytest.mark.parametrize("name", OPTIONS)
def test_traced_attention_gives_the_same_bits(name):
    """Every option arrives: what is spread out for the operation is put together again."""
    step = make_step(*MIXED, window=OPTIONS[name].window, chunk=OPTIONS[name].chunk)
    arguments = (step.q, step.k_cache, step.v_cache, step.batch, OPTIONS[name])
    with Operations() as counted:
        got = attend(*arguments)
    assert ATTENTION in counted.seen
    assert torch.equal(got, paged_attention_triton(*arguments))


def test_traced_experts_give_the_same_bits():
    x, chosen, weights, experts, gating = experts_of(bias=True)
    with Operations() as counted:
        got = run_experts(x, chosen, weights, experts, gating, weigh_input=True)
    assert EXPERTS in counted.seen
    want = grouped_mlp_triton(x, chosen, weights, experts, gating, weigh_input=True)
    assert torch.equal(got, want)
    plain = grouped_mlp_triton(x, chosen, weights, experts, gating)
    assert not torch.equal(got, plain)


def dispatched(call) -> set[str]:
    """The operations of ours that torch's dispatcher saw."""
    with torch.profiler.profile() as profile:
        call()
    return {event.name for event in profile.events() if event.name.startswith("assembler::")}


def test_launched_at_once_where_nobody_traces():
    step, cache = make_step(*MIXED), torch.zeros(1, 2, 1, 8)

    def run() -> None:
        attend(step.q, step.k_cache, step.v_cache, step.batch, OPTIONS["plain"])
        store_kv(torch.ones(1, 1, 8), None, cache, None, torch.tensor([1]))
        run_experts(*experts_of(bias=False))
        gated_triton(torch.ones(2, 8), torch.ones(2, 8), "silu")

    def run_traced() -> None:
        with Operations():
            run()

    assert not dispatched(run) and cache.sum() == 8
    names = {"paged_attention", "store_kv", "grouped_mlp", "gated"}
    assert dispatched(run_traced) == {f"assembler::{name}" for name in names}


def test_who_traces():
    x = torch.ones(2)
    assert not is_traced(x)
    with FakeTensorMode():
        assert is_traced(x)
        fake = torch.ones(2)
    assert is_traced(fake)
    assert is_traced(torch.nn.Parameter(x)), "what is none of torch's plain tensors"


def test_a_graph_by_fx_holds_each_as_one_node():
    """Store, then attend, in the order of the code, by `make_fx` over real and fake tensors."""
    step, options = make_step([2, 1], [2, 1]), OPTIONS["plain"]
    caches = (torch.zeros_like(step.k_cache), torch.zeros_like(step.v_cache))
    keys, values = torch.cat(step.keys), torch.cat(step.values)

    def block(q, k, v, k_cache, v_cache):
        store_kv(k, v, k_cache, v_cache, step.batch.slot_mapping)
        return attend(q, k_cache, v_cache, step.batch, options)

    for mode in ("real", "fake"):
        graph = make_fx(block, tracing_mode=mode, _allow_non_fake_inputs=True)(
            step.q, keys, values, *caches
        )
        called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        assert [target for target in called if target in (STORE, ATTENTION)] == [STORE, ATTENTION]
        fresh = [torch.full_like(cache, float("nan")) for cache in caches]
        got = graph(step.q, keys, values, *fresh)
        torch.testing.assert_close(got.double(), step.expected(options), atol=1e-5, rtol=1e-5)


def test_a_compiled_step_stores_before_it_attends():
    """Functionalised, the caches still are written in place, and read afterwards."""
    options = AttentionOptions(scale=0.3, softcap=3.0)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def block(q, k, v, k_cache, v_cache, batch):
        store_kv(k, v, k_cache, v_cache, batch.slot_mapping)
        return attend(q, k_cache, v_cache, batch, options)

    for lens in ([2, 1], [3, 2], [1, 1]):
        step = make_step(lens, lens, seed=sum(lens))
        keys, values = torch.cat(step.keys), torch.cat(step.values)
        caches = [torch.full_like(c, float("nan")) for c in (step.k_cache, step.v_cache)]
        with torch.no_grad():
            got = block(step.q, keys, values, *caches, step.batch)
        torch.testing.assert_close(got.double(), step.expected(options), atol=1e-5, rtol=1e-5)
        by_hand = [torch.full_like(cache, float("nan")) for cache in caches]
        store_kv_triton(keys, values, *by_hand, step.batch.slot_mapping)
        for cache, want in zip(caches, by_hand, strict=True):
            assert torch.equal(cache.nan_to_num(), want.nan_to_num())
