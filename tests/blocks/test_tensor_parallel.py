"""Blocks split over ranks give what the whole block gives, every rank the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from block_harness import build_context, fill, randn, run_ranks

from assembler.blocks.activations import XIELU
from assembler.blocks.alibi import AlibiAttn
from assembler.blocks.attention import RopeAttn
from assembler.blocks.attention_gate import OutputGate
from assembler.blocks.context import ForwardContext
from assembler.blocks.embedding import Embedding, LMHead
from assembler.blocks.linear import Linear
from assembler.blocks.mlp import MLP, GatedMLP
from assembler.blocks.norms import LayerNorm, RMSNorm
from assembler.blocks.parallel import TensorParallel
from assembler.blocks.qk_norm import QKNorm
from assembler.blocks.rope import RopeSettings

LENGTH = 5
CTX = ForwardContext.dense(LENGTH)
ATTENTION = {
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 8,
    "qkv_bias": True,
    "o_bias": True,
    "qk_norm": partial(QKNorm, norm=partial(RMSNorm, eps=2e-3)),
    "rope": RopeSettings(),
}
FEED_FORWARD = {"intermediate_size": 56, "activation": "silu", "bias": True}


def check(block, fields: dict, size: int, call) -> None:
    """Every rank's result equals the whole block's."""

    def build(tp: TensorParallel):
        return block(build_context(tp=tp), **fields)

    whole = fill(build(TensorParallel()))
    with torch.no_grad():
        expected = call(whole)
    for got in run_ranks(size, whole, build, call):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 6, 8])
def test_attention_split_by_heads_and_with_replicated_key_heads(size):
    x = randn(2, LENGTH, 48)
    check(RopeAttn, ATTENTION, size, lambda attn: attn(x, ForwardContext.dense(LENGTH)))


@pytest.mark.parametrize("per", ["channel", "head"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_what_belongs_to_heads_goes_with_them(size, per):
    x = randn(2, LENGTH, 48)
    fields = {
        **ATTENTION,
        "num_heads": 9 if size == 3 else 8,
        "num_kv_heads": 3 if size == 3 else 2,
        "qk_norm": partial(QKNorm, norm=LayerNorm, over="each_head"),
        "sinks": True,
        "out_norm": partial(RMSNorm, eps=2e-3),
        "gate": partial(OutputGate, per=per),
    }
    check(RopeAttn, fields, size, lambda attn: attn(x, ForwardContext.dense(LENGTH)))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_slopes_go_with_their_heads(size):
    x = randn(2, LENGTH, 48)
    fields = {"num_heads": 9, "num_kv_heads": 3} if size == 3 else {"num_heads": 8}
    fields |= {"head_dim": 8, "qkv_bias": True, "o_bias": True}
    check(AlibiAttn, fields, size, lambda attn: attn(x, ForwardContext.dense(LENGTH)))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_attention_with_more_heads_on_one_rank_than_on_another(size):
    x = randn(2, LENGTH, 48)
    fields = {**ATTENTION, "num_heads": 9, "num_kv_heads": 3}
    check(RopeAttn, fields, size, lambda attn: attn(x, ForwardContext.dense(LENGTH)))


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize(
    "norm", [partial(RMSNorm, eps=2e-3), partial(RMSNorm, eps=2e-3, offset=1), LayerNorm]
)
@pytest.mark.parametrize("size", [2, 8])
def test_full_width_qk_norm_takes_its_means_over_all_ranks(size, norm, position):
    x = randn(2, LENGTH, 48)
    fields = {**ATTENTION, "qk_norm": partial(QKNorm, norm=norm, over="full", position=position)}
    check(RopeAttn, fields, size, lambda attn: attn(x, ForwardContext.dense(LENGTH)))


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("block", [GatedMLP, MLP])
def test_feed_forward(block, size):
    x = randn(2, LENGTH, 48)
    check(block, FEED_FORWARD, size, lambda mlp: mlp(x))


@pytest.mark.parametrize("size", [2, 5])
def test_inner_norm_and_learned_activation(size):
    x = randn(2, LENGTH, 48)
    norm = partial(RMSNorm, eps=2e-3)
    gated = {**FEED_FORWARD, "inner_norm": norm, "limit": 0.8, "up_offset": 1.0}
    check(GatedMLP, gated, size, lambda mlp: mlp(x))
    check(MLP, {**FEED_FORWARD, "activation": XIELU}, size, lambda mlp: mlp(x))


def test_linear_is_whole_on_every_rank():
    x = randn(2, LENGTH, 48)
    check(Linear, {"out_size": 1, "bias": True}, 2, lambda linear: linear(x).sigmoid())


def test_embedding_sums_the_shares_and_scales_once():
    tokens = torch.tensor([[0, 19, 20, 39, 59]])
    for size in (3, 7):
        check(Embedding, {"scale": 7.0}, size, lambda embed: embed(tokens))


def test_head_gathers_the_logits():
    x = randn(2, LENGTH, 48)
    for size in (3, 7):
        check(LMHead, {"bias": True}, size, lambda head: head(x, CTX))
