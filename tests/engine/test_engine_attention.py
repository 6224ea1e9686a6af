"""The engine over the real torch attention kernels, against whole-sequence attention in float64."""

import random

import pytest
import torch
from engine_fakes import VOCAB, make_engine, run
from torch import nn

from assembler.blocks.context import CacheSpec, ForwardContext
from assembler.engine.sampling_params import SamplingParams
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dispatch import attention_backend

HIDDEN, HEADS, KV_HEADS, DIM = 24, 4, 2, 6


class PagedAttention(nn.Module):
    """Grouped-query attention that keeps its keys and values in cache `cache_index`."""

    def __init__(self, cache_index: int) -> None:
        super().__init__()
        self.cache_index = cache_index
        self.q = nn.Linear(HIDDEN, HEADS * DIM)
        self.kv = nn.Linear(HIDDEN, 2 * KV_HEADS * DIM)
        self.o = nn.Linear(HEADS * DIM, HIDDEN)

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(KV_HEADS, DIM)

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        q = self.q(x).view(-1, HEADS, DIM)
        k, v = self.kv(x).view(-1, 2, KV_HEADS, DIM).unbind(1)
        caches = ctx.kv_caches[self.cache_index]
        ctx.attention.store_kv(k, v, *caches, ctx.paged.slot_mapping)
        out = ctx.attention.attend(q, *caches, ctx.paged, AttentionOptions(DIM**-0.5))
        return x + self.o(out.flatten(1))

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The same over one whole sequence [L, HIDDEN], written out."""
        length = len(x)
        q = self.q(x).view(length, HEADS, DIM)
        k, v = self.kv(x).view(length, 2, KV_HEADS, DIM).unbind(1)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * DIM**-0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, v)
        return x + self.o(out.flatten(1))


class TinyLM(nn.Module):
    """Two layers of attention over token and position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.position = nn.Embedding(200, HIDDEN)
        self.layers = nn.ModuleList(PagedAttention(index) for index in range(2))
        self.head = nn.Linear(HIDDEN, VOCAB)

    def forward(self, input_ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        x = self.embed(input_ids) + self.position(ctx.positions)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.head(x if ctx.logit_rows is None else x[ctx.logit_rows])

    def reference(self, token_ids: list[int]) -> torch.Tensor:
        x = self.embed(torch.tensor(token_ids)) + self.position.weight[: len(token_ids)]
        for layer in self.layers:
            x = layer.reference(x)
        return self.head(x[-1])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyLM().requires_grad_(False).double()


def engine_for(model, **options):
    engine = make_engine(model, **options)
    runner = engine.model_runner
    runner.attention_backend = attention_backend("torch", "cpu")
    runner.kv_caches = [(k.double(), v.double()) for k, v in runner.kv_caches]
    return engine


def requests(count):
    rng = random.Random(5)
    return {
        f"r{n}": ([rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))], rng.randint(1, 12))
        for n in range(count)
    }


WAYS = {
    "plain": {},
    "chunks, scattered": {
        "max_num_batched_tokens": 9,
        "max_num_seqs": 9,
        "page_size": 3,
        "shuffle_pages": 3,
    },
    "preemption": {"num_pages": 12, "max_model_len": 48},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_greedy_tokens_equal_those_of_whole_sequences(model, way):
    wanted = requests(10)
    engine = engine_for(model, **way)
    for name, (prompt, count) in wanted.items():
        engine.add_request(name, prompt, SamplingParams(temperature=0, max_tokens=count))
    outputs = run(engine)
    for name, (prompt, count) in wanted.items():
        token_ids = list(prompt)
        for _ in range(count):
            token_ids.append(int(model.reference(token_ids).argmax()))
        assert outputs[name].outputs[0].token_ids == token_ids[len(prompt) :]


def test_nan_of_one_request_never_reaches_another(model):
    """NaN keys and values stay in pages that others get later, and in steps others take part in."""
    poison = VOCAB - 1
    prompt = [1, 2, 3, 4, 5]
    clean = engine_for(model)
    params = SamplingParams(temperature=0, max_tokens=20)
    clean.add_request("a", prompt, params)
    expected = run(clean)["a"].outputs[0].token_ids
    assert poison not in expected

    embedding = model.embed.weight[poison].clone()
    model.embed.weight[poison] = torch.nan
    try:
        engine = engine_for(model, num_pages=20, max_model_len=60)
        for number in range(4):
            engine.add_request(f"bad{number}", [poison, *prompt], params)
            engine.add_request(f"good{number}", prompt, params)
        outputs = run(engine)
    finally:
        model.embed.weight[poison] = embedding
    for number in range(4):
        assert outputs[f"bad{number}"].error is not None
        assert outputs[f"good{number}"].outputs[0].token_ids == expected


@pytest.mark.parametrize("aborted", [False, True])
def test_nan_does_not_reach_who_shares_its_beginning(model, aborted):
    """A poisoned prompt spoils pages of harmless tokens before it; others compute them anew."""
    poison, prompt = VOCAB - 1, [1, 2, 3, 4, 5, 6, 7, 8]
    params = SamplingParams(temperature=0, max_tokens=10)
    clean = engine_for(model)
    clean.add_request("a", [*prompt, 9], params)
    expected = run(clean)["a"].outputs[0].token_ids

    embedding = model.embed.weight[poison].clone()
    model.embed.weight[poison] = torch.nan
    try:
        engine = engine_for(model, max_num_batched_tokens=14, max_num_seqs=8)
        engine.add_request("bad", [*prompt, poison, *prompt], params)
        engine.step()  # all but its end
        if aborted:
            engine.abort("bad")
        for name in ("good", "better"):
            engine.add_request(name, [*prompt, 9], params)
        outputs = run(engine)
    finally:
        model.embed.weight[poison] = embedding
    assert engine.stats.num_cached_tokens > 0
    for name in ("good", "better"):
        assert outputs[name].error is None and outputs[name].outputs[0].token_ids == expected
    assert aborted or outputs["bad"].error is not None
