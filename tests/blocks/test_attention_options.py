"""What only some models do in attention, against the layers of transformers that do it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attention_harness import causal_mask, copy_weights
from block_harness import build_context, fill, randn
from torch import nn
from transformers import (
    AfmoeConfig,
    BitNetConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    GptOssConfig,
    Llama4TextConfig,
    Ministral3Config,
    NanoChatConfig,
    OlmoConfig,
    OlmoeConfig,
    StableLmConfig,
)
from transformers.models.afmoe import modeling_afmoe
from transformers.models.bitnet import modeling_bitnet
from transformers.models.bloom import modeling_bloom
from transformers.models.cohere import modeling_cohere
from transformers.models.falcon import modeling_falcon
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.llama4 import modeling_llama4
from transformers.models.ministral3 import modeling_ministral3
from transformers.models.mpt import modeling_mpt
from transformers.models.nanochat import modeling_nanochat
from transformers.models.olmo import modeling_olmo
from transformers.models.olmoe import modeling_olmoe
from transformers.models.stablelm import modeling_stablelm

from assembler.blocks.alibi import Alibi, AlibiAttn, alibi_slopes
from assembler.blocks.attention import RopeAttn
from assembler.blocks.attention_gate import OutputGate
from assembler.blocks.context import ForwardContext
from assembler.blocks.norms import LayerNorm, RMSNorm
from assembler.blocks.parallel import Part, TensorParallel
from assembler.blocks.position_scale import PositionScale
from assembler.blocks.qk_norm import QKNorm
from assembler.blocks.rope import RopeSettings
from assembler.errors import SpecError

HIDDEN, LENGTH, EPS = 48, 11, 2e-3
HEADS = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8}
SHAPE = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "pad_token_id": None,
    "attn_implementation": "eager",
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}
NORMED = {**SHAPE, "rms_norm_eps": EPS}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
LAYER_NORMED = {**SHAPE, "layer_norm_eps": EPS}
RMS = partial(RMSNorm, eps=EPS)
HEAD_NORM = partial(QKNorm, norm=partial(LayerNorm, eps=EPS, bias=False), over="each_head")
INTERLEAVED = RopeSettings(theta=100.0, style="interleaved")

# name -> (transformers' attention, its rotary embedding, our fields)
REFERENCES = {
    "afmoe": (
        lambda: modeling_afmoe.AfmoeAttention(AfmoeConfig(**NORMED, **LAYERS), 0),
        modeling_afmoe.AfmoeRotaryEmbedding,
        {"qk_norm": partial(QKNorm, norm=RMS), "gate": OutputGate, "window": 4},
    ),
    "bitnet": (
        lambda: modeling_bitnet.BitNetAttention(BitNetConfig(**NORMED), 0),
        modeling_bitnet.BitNetRotaryEmbedding,
        {"out_norm": RMS},
    ),
    "cohere": (
        lambda: modeling_cohere.CohereAttention(CohereConfig(**LAYER_NORMED, use_qk_norm=True), 0),
        modeling_cohere.CohereRotaryEmbedding,
        {"qk_norm": HEAD_NORM, "rope": INTERLEAVED},
    ),
    "gpt_oss": (
        lambda: modeling_gpt_oss.GptOssAttention(
            GptOssConfig(**NORMED, **LAYERS, attention_bias=True), 0
        ),
        modeling_gpt_oss.GptOssRotaryEmbedding,
        {"sinks": True, "window": 4, "qkv_bias": True, "o_bias": True},
    ),
    "ministral3": (
        lambda: modeling_ministral3.Ministral3Attention(
            Ministral3Config(
                **{
                    **NORMED,
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 100.0,
                        "llama_4_scaling_beta": 0.7,
                        "original_max_position_embeddings": 3,
                    },
                }
            ),
            0,
        ),
        modeling_ministral3.Ministral3RotaryEmbedding,
        {"position_scale": PositionScale(beta=0.7, length=3)},
    ),
    "nanochat": (
        lambda: modeling_nanochat.NanoChatAttention(NanoChatConfig(**NORMED), 0),
        modeling_nanochat.NanoChatRotaryEmbedding,
        {
            "qk_norm": partial(QKNorm, norm=partial(RMS, weight=False), position="after"),
            "rope": RopeSettings(theta=100.0, style="half_reversed"),
        },
    ),
    "olmo": (
        lambda: modeling_olmo.OlmoAttention(OlmoConfig(**SHAPE, clip_qkv=0.4), 0),
        modeling_olmo.OlmoRotaryEmbedding,
        {"clip_qkv": 0.4},
    ),
    "olmoe": (
        lambda: modeling_olmoe.OlmoeAttention(OlmoeConfig(**NORMED, clip_qkv=0.4), 0),
        modeling_olmoe.OlmoeRotaryEmbedding,
        {"clip_qkv": 0.4, "qk_norm": partial(QKNorm, norm=RMS, over="full")},
    ),
    "stablelm": (
        lambda: modeling_stablelm.StableLmAttention(
            StableLmConfig(**LAYER_NORMED, partial_rotary_factor=0.5, qk_layernorm=True), 0
        ),
        modeling_stablelm.StableLmRotaryEmbedding,
        {
            "qk_norm": HEAD_NORM,
            "rope": RopeSettings(theta=100.0, partial=0.5),
        },
    ),
}


def attention(**fields) -> RopeAttn:
    return RopeAttn(build_context(HIDDEN), **{**HEADS, "rope": RopeSettings(theta=100.0), **fields})


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
        expected = reference(
            x,
            position_embeddings=tables,
            attention_mask=causal_mask(LENGTH, fields.get("window")),
            position_ids=ctx.positions[None],
        )[0]
        got = ours(x, ctx)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("rotated", [True, False], ids=["rope", "nope"])
def test_llama4_norms_what_it_rotates_and_scales_what_it_does_not(rotated):
    config = Llama4TextConfig(
        **NORMED,
        no_rope_layers=[int(rotated)] * 2,
        attn_temperature_tuning=True,
        attn_scale=0.7,
        floor_scale=3,
        use_qk_norm=True,
    )
    reference = fill(modeling_llama4.Llama4TextAttention(config, 0)).eval()
    if rotated:
        norm = partial(QKNorm, norm=partial(RMS, weight=False), position="after")
        ours = attention(rope=INTERLEAVED, chunk=4, qk_norm=norm)
    else:
        ours = attention(rope=None, position_scale=PositionScale(beta=0.7, length=3, shift=1))
    copy_weights(reference, ours)
    x = randn(2, LENGTH, HIDDEN)
    ctx = ForwardContext.dense(LENGTH)
    with torch.no_grad():
        tables = modeling_llama4.Llama4TextRotaryEmbedding(config)(x, ctx.positions[None])
        mask = causal_mask(LENGTH, chunk=4 if rotated else None)
        expected, _ = reference(x, position_embeddings=tables, attention_mask=mask)
        torch.testing.assert_close(ours(x, ctx), expected, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("rounded", [False, True], ids=["bloom", "falcon"])
def test_alibi_equals_transformers(rounded):
    sizes = {"hidden_size": HIDDEN, "n_head": 6, "num_attention_heads": 6}
    if rounded:
        config = FalconConfig(**sizes, alibi=True, bias=True, multi_query=False)
        config.new_decoder_architecture = False
        module, reference = modeling_falcon, modeling_falcon.FalconAttention(config, 0)
    else:
        config = BloomConfig(**sizes)
        module, reference = modeling_bloom, modeling_bloom.BloomAttention(config, 0)
    config._attn_implementation = "eager"
    reference = fill(reference).eval()
    fields = {"num_heads": 6, "qkv_bias": True, "o_bias": True, "rounded": rounded}
    ours = AlibiAttn(build_context(HIDDEN), **fields)
    with torch.no_grad():
        for leaf in ("weight", "bias"):
            fused = getattr(reference.query_key_value, leaf)
            parts = fused.unflatten(0, (6, 3, 8)).transpose(0, 1).flatten(0, 2)
            getattr(ours.qkv, leaf).copy_(parts)
            getattr(ours.o, leaf).copy_(getattr(reference.dense, leaf))
        x = randn(1, LENGTH, HIDDEN)
        alibi = module.build_alibi_tensor(torch.ones(1, LENGTH, dtype=torch.long), 6, x.dtype)
        mask = causal_mask(LENGTH)
        if rounded:
            expected = reference(x, alibi=alibi, attention_mask=mask)[0]
        else:
            expected = reference(x, torch.zeros_like(x), alibi, mask)[0]
        torch.testing.assert_close(
            ours(x, ForwardContext.dense(LENGTH)), expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("heads", [1, 3, 6, 8, 12, 40])
def test_slopes_are_those_of_bloom_and_mpt(heads):
    ones = torch.ones(1, 2, dtype=torch.long)
    bloom = modeling_bloom.build_alibi_tensor(ones, heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads, 8.0), bloom, rtol=1e-6, atol=0)
    for max_bias in (8, 5):
        mpt = -modeling_mpt.build_mpt_alibi_tensor(heads, 2, max_bias)[:, 0, 0]
        torch.testing.assert_close(alibi_slopes(heads, max_bias), mpt, rtol=1e-6, atol=0)


def test_slopes_stay_float32_and_belong_to_the_heads_of_the_rank():
    heads = Part("q", 6)
    alibi = Alibi(8.0, heads, TensorParallel(1, 3)).to(torch.bfloat16)
    assert alibi.slopes.dtype == torch.float32 and not alibi.state_dict()
    assert torch.equal(alibi.slopes, alibi_slopes(6, 8.0)[2:4])


@pytest.mark.parametrize("per", ["head", "channel"])
def test_a_gate_multiplies_the_heads(per):
    plain = fill(attention())
    gated = attention(gate=partial(OutputGate, per=per, activation="softplus"))
    fill(gated)
    gated.load_state_dict(plain.state_dict(), strict=False)
    x = randn(1, LENGTH, HIDDEN)
    seen: list[torch.Tensor] = []
    for attn in (plain, gated):
        attn.o.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            attn(x, ForwardContext.dense(LENGTH))
    gate = nn.functional.softplus(gated.gate.proj(x))
    assert gate.shape[-1] == (6 if per == "head" else 48)
    gate = gate.repeat_interleave(48 // gate.shape[-1], dim=-1)
    torch.testing.assert_close(seen[1], seen[0] * gate)


def test_a_gate_elsewhere_is_refused():
    with pytest.raises(SpecError, match=r"layers\.0\.block: OutputGate serves the heads"):
        OutputGate(build_context())


def test_parameters_have_the_names_weight_maps_use():
    attn = attention(
        sinks=True,
        gate=OutputGate,
        out_norm=RMS,
        qk_norm=HEAD_NORM,
    )
    shapes = {name: tuple(p.shape) for name, p in attn.named_parameters()}
    assert shapes == {
        "qkv.weight": (80, 48),
        "o.weight": (48, 48),
        "q_norm.weight": (6, 8),
        "k_norm.weight": (2, 8),
        "out_norm.weight": (48,),
        "gate.proj.weight": (48, 48),
        "sinks": (6,),
    }
    assert attn.state_dict().keys() == shapes.keys()


def test_gradients_reach_every_parameter():
    attn = attention(sinks=True, gate=OutputGate, out_norm=LayerNorm, qk_norm=HEAD_NORM)
    fill(attn)
    x = randn(2, LENGTH, HIDDEN).requires_grad_()
    attn(x, ForwardContext.dense(LENGTH)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in attn.parameters()) and x.grad.isfinite().all()
