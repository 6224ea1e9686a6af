"""RopeAttn, dense, against the attention layers of transformers with the same weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attention_harness import causal_mask, copy_weights
from block_harness import build_context, fill, randn
from transformers import (
    Gemma2Config,
    HunYuanDenseV1Config,
    LlamaConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.hunyuan_v1_dense import modeling_hunyuan_v1_dense
from transformers.models.llama import modeling_llama
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from assembler.blocks.attention import RopeAttn
from assembler.blocks.context import CacheSpec, ForwardContext
from assembler.blocks.norms import RMSNorm
from assembler.blocks.parallel import TensorParallel
from assembler.blocks.qk_norm import QKNorm
from assembler.blocks.rope import RopeSettings
from assembler.errors import SpecError

HIDDEN, LENGTH, EPS = 42, 11, 2e-3
HEADS = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8}
ROPE = RopeSettings(theta=100.0)
SHAPE = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "rms_norm_eps": EPS,
    "pad_token_id": None,
    "attn_implementation": "eager",
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}
RMS = partial(RMSNorm, eps=EPS)

# name -> (transformers' attention, its rotary embedding, our fields)
REFERENCES = {
    "llama": (
        lambda: modeling_llama.LlamaAttention(LlamaConfig(**SHAPE, attention_bias=True), 0),
        modeling_llama.LlamaRotaryEmbedding,
        {"qkv_bias": True, "o_bias": True},
    ),
    "qwen2": (
        lambda: modeling_qwen2.Qwen2Attention(Qwen2Config(**SHAPE), 0),
        modeling_qwen2.Qwen2RotaryEmbedding,
        {"qkv_bias": True},
    ),
    "qwen3": (
        lambda: modeling_qwen3.Qwen3Attention(Qwen3Config(**SHAPE), 0),
        modeling_qwen3.Qwen3RotaryEmbedding,
        {"qk_norm": partial(QKNorm, norm=RMS)},
    ),
    "gemma2": (
        lambda: modeling_gemma2.Gemma2Attention(
            Gemma2Config(
                **SHAPE, query_pre_attn_scalar=20, attn_logit_softcapping=1.5, sliding_window=4
            ),
            0,
        ),
        modeling_gemma2.Gemma2RotaryEmbedding,
        {"scale": 20**-0.5, "softcap": 1.5, "window": 4},
    ),
    "olmo2": (
        lambda: modeling_olmo2.Olmo2Attention(Olmo2Config(**SHAPE), 0),
        modeling_olmo2.Olmo2RotaryEmbedding,
        {"qk_norm": partial(QKNorm, norm=RMS, over="full")},
    ),
    "hunyuan": (
        lambda: modeling_hunyuan_v1_dense.HunYuanDenseV1Attention(HunYuanDenseV1Config(**SHAPE), 0),
        modeling_hunyuan_v1_dense.HunYuanDenseV1RotaryEmbedding,
        {"qk_norm": partial(QKNorm, norm=RMS, position="after")},
    ),
}


def attention(**fields) -> RopeAttn:
    return RopeAttn(build_context(HIDDEN), **{**HEADS, "rope": ROPE, **fields})


@pytest.mark.parametrize("name", REFERENCES)
def test_dense_equals_transformers(name):
    make, rotary, fields = REFERENCES[name]
    reference = fill(make()).eval()
    ours = attention(**fields)
    copy_weights(reference, ours)
    x = randn(2, LENGTH, HIDDEN)
    ctx = ForwardContext.dense(LENGTH)
    with torch.no_grad():
        tables = rotary(reference.config)(x, ctx.positions[None])
        mask = causal_mask(LENGTH, fields.get("window"))
        expected, _ = reference(x, position_embeddings=tables, attention_mask=mask)
        got = ours(x, ctx)
    assert expected.std() > 0.3
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=5e-6)


def test_without_rope_positions_do_not_matter_beyond_their_order():
    reference = fill(modeling_llama.LlamaAttention(LlamaConfig(**SHAPE), 0)).eval()
    ours = attention(rope=None)
    copy_weights(reference, ours)
    x = randn(1, LENGTH, HIDDEN)
    unrotated = torch.ones(1, LENGTH, 8), torch.zeros(1, LENGTH, 8)
    with torch.no_grad():
        expected, _ = reference(x, unrotated, causal_mask(LENGTH))
        torch.testing.assert_close(ours(x, ForwardContext.dense(LENGTH)), expected)


def test_nulls_are_derived_from_the_width():
    attn = RopeAttn(build_context(48), num_heads=6)
    assert attn.cache_spec() == CacheSpec(num_kv_heads=6, head_dim=8, window=None)
    assert attn.scale == 8**-0.5
    assert attn.qkv.weight.shape == (3 * 48, 48) and attn.o.weight.shape == (48, 48)


def test_parameters_have_the_names_weight_maps_use():
    attn = attention(qkv_bias=True, o_bias=True, qk_norm=partial(QKNorm, norm=RMS))
    assert set(dict(attn.named_parameters())) == {
        "qkv.weight",
        "qkv.bias",
        "o.weight",
        "o.bias",
        "q_norm.weight",
        "k_norm.weight",
    }
    assert not attn.state_dict().keys() - dict(attn.named_parameters()).keys()
    assert [part.name for part in attn.qkv.parts] == ["q", "k", "v"]


def test_more_ranks_than_key_heads_share_them():
    attn = RopeAttn(build_context(HIDDEN, tp=TensorParallel(3, 6)), **HEADS)
    assert attn.cache_spec() == CacheSpec(num_kv_heads=1, head_dim=8)
    assert attn.qkv.local_sizes == (8, 8, 8)


@pytest.mark.parametrize(
    ("fields", "tp_size", "message"),
    [
        ({"num_heads": 5}, 1, "num_heads 5 is not a multiple of num_kv_heads 2"),
        ({"num_heads": 4, "head_dim": None}, 1, "hidden_size 42 is not a multiple of num_heads 4"),
        ({}, 5, "qkv: 'q' has 6 units of 8 rows in 2 groups, which 5 ranks.*'k' has 2 units"),
        ({"rope": RopeSettings(partial=0.4)}, 1, "gives 3 rotated dimensions"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_path(fields, tp_size, message):
    ctx = build_context(HIDDEN, tp=TensorParallel(size=tp_size), path="layers.7.attn")
    with pytest.raises(SpecError, match=rf"layers\.7\.attn.*{message}"):
        RopeAttn(ctx, **{**HEADS, **fields})


def test_gradients_flow_through_every_option():
    attn = fill(
        attention(
            qk_norm=partial(QKNorm, norm=RMS), window=4, rope=RopeSettings(theta=100.0, partial=0.5)
        )
    )
    x = randn(2, LENGTH, HIDDEN).requires_grad_()
    attn(x, ForwardContext.dense(LENGTH)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in attn.parameters()) and x.grad.isfinite().all()


def test_compiles_as_one_graph():
    attn = fill(attention(qk_norm=partial(QKNorm, norm=RMS), window=4))
    compiled = torch.compile(attn, fullgraph=True, backend="eager")
    x = randn(2, LENGTH, HIDDEN)
    with torch.no_grad():
        expected = attn(x, ForwardContext.dense(LENGTH))
        torch.testing.assert_close(compiled(x, ForwardContext.dense(LENGTH)), expected)
