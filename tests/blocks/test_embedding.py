"""Token embeddings and the head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from block_harness import build_context, fill, randn
from torch import nn
from torch.nn import functional as F
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from assembler.blocks.context import ForwardContext
from assembler.blocks.embedding import Embedding, LMHead
from assembler.blocks.parallel import TensorParallel
from assembler.errors import SpecError

WIDTH, VOCAB = 48, 60
TOKENS = torch.tensor([[3, 59, 0, 17], [1, 1, 30, 29]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scale_is_rounded_like_gemma3(dtype):
    scale = 54.3**0.5
    ours = fill(Embedding(build_context(WIDTH, VOCAB), scale=scale)).to(dtype)
    reference = Gemma3TextScaledWordEmbedding(VOCAB, WIDTH, 0, embed_scale=scale).to(dtype)
    reference.load_state_dict(ours.state_dict())
    assert torch.equal(ours(TOKENS), reference(TOKENS))
    assert ours(TOKENS).dtype == dtype


def test_unscaled_embedding_is_a_lookup():
    embed = fill(Embedding(build_context(WIDTH, VOCAB)))
    assert torch.equal(embed(TOKENS), embed.weight[TOKENS])


@pytest.mark.parametrize("bias", [True, False])
def test_head_scores_only_the_wanted_rows(bias):
    head = fill(LMHead(build_context(WIDTH, VOCAB), bias=bias))
    x = randn(5, WIDTH)
    every = F.linear(x, head.weight, head.bias)
    ctx = ForwardContext.dense(5)
    torch.testing.assert_close(head(x, ctx), every)
    some = replace(ctx, logit_rows=torch.tensor([1, 4]))
    torch.testing.assert_close(head(x, some), every[[1, 4]])
    torch.testing.assert_close(head(x[None].expand(2, 5, WIDTH), ctx), every.expand(2, 5, VOCAB))


def test_tied_head_borrows_the_parameter_and_owns_none():
    model = nn.Module()
    with torch.device("meta"):
        model.embed = Embedding(build_context(WIDTH, VOCAB))
        model.lm_head = LMHead(build_context(WIDTH, VOCAB), tied=True)
    assert model.lm_head.weight is None and not model.lm_head.shard_dims()
    model.lm_head.tie(model.embed)
    assert model.lm_head.weight is model.embed.weight
    assert [name for name, _ in model.named_parameters()] == ["embed.weight"]

    model.to_empty(device="cpu")
    model.lm_head.tie(model.embed)
    fill(model)
    x = randn(3, WIDTH)
    expected = F.linear(x, model.embed.weight)
    torch.testing.assert_close(model.lm_head(x, ForwardContext.dense(3)), expected)


def test_tied_head_keeps_its_own_bias():
    head = LMHead(build_context(WIDTH, VOCAB), tied=True, bias=True)
    assert set(head.shard_dims()) == {"bias"} and head.bias.shape == (VOCAB,)


def test_vocabulary_is_split_over_ranks():
    ctx = build_context(WIDTH, VOCAB, tp=TensorParallel(2, 3))
    embed, head = Embedding(ctx), LMHead(ctx, bias=True)
    assert embed.weight.shape == head.weight.shape == (20, WIDTH) and head.bias.shape == (20,)
    layout = embed.shard_dims()["weight"]
    assert layout == head.shard_dims()["weight"]
    assert layout.kind == "vocab" and layout.shape == (VOCAB, WIDTH) and layout.dim == 0
    assert list(layout.parts[0].rank_rows(2, 3)) == list(range(40, 60))


@pytest.mark.parametrize("block", [Embedding, LMHead])
def test_vocabulary_that_ranks_cannot_share_is_refused(block):
    with pytest.raises(SpecError, match=r"embed: 'vocab' has 60 rows, too few for 61 ranks"):
        block(build_context(WIDTH, VOCAB, tp=TensorParallel(size=61), path="embed"))


def test_a_width_of_their_own():
    embed = fill(Embedding(build_context(WIDTH, VOCAB), width=12))
    head = fill(LMHead(build_context(WIDTH, VOCAB), width=12))
    assert embed(TOKENS).shape == (2, 4, 12)
    assert embed.shard_dims() == head.shard_dims() and head.weight.shape == (VOCAB, 12)
    assert head(embed(TOKENS), ForwardContext.dense(4)).shape == (2, 4, VOCAB)
    tied = LMHead(build_context(WIDTH, VOCAB), tied=True, width=12)
    tied.tie(embed)
    assert tied.weight is embed.weight


def test_a_tied_head_of_another_width_is_refused():
    embed = Embedding(build_context(WIDTH, VOCAB), width=12)
    head = LMHead(build_context(WIDTH, VOCAB, path="lm_head"), tied=True)
    with pytest.raises(SpecError, match=r"lm_head: a tied head of width 48 .* of width 12: give"):
        head.tie(embed)
