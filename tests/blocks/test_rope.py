"""RoPE tables and rotations against transformers, for every type, style and share of the head."""

from __future__ import annotations

import pytest
import torch
from block_harness import randn
from transformers import (
    CohereConfig,
    GlmConfig,
    GPTNeoXConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    PhimoeConfig,
)
from transformers.models.cohere import modeling_cohere
from transformers.models.glm import modeling_glm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.hunyuan_v1_dense import modeling_hunyuan_v1_dense
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3
from transformers.models.phimoe import modeling_phimoe

from assembler.blocks.context import ForwardContext
from assembler.blocks.rope import RopeSettings, RotaryEmbedding, apply_rotary, rotary_dim
from assembler.errors import SpecError

HEAD_DIM = 16
FACTORS = {
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [2.0 + 0.7 * i for i in range(6)],
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
# (the rope_parameters of transformers, length of the text); max_position_embeddings is 64.
CASES = {
    "default": ({}, 200),
    "default_theta": ({"rope_theta": 500.0}, 40),
    "linear": ({"factor": 2.5}, 200),
    "dynamic_short": ({"factor": 3.0}, 64),
    "dynamic_long": ({"factor": 3.0}, 200),
    "llama3": (
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        200,
    ),
    "llama3_step": (
        {
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
        },
        200,
    ),
    "yarn": (YARN, 200),
    "yarn_ramp": ({**YARN, "beta_fast": 4.0, "beta_slow": 0.5, "rope_theta": 100.0}, 200),
    "yarn_mscale": ({**YARN, "mscale": 1.0, "mscale_all_dim": 0.4, "truncate": False}, 200),
    "yarn_attention_factor": ({**YARN, "attention_factor": 1.7}, 200),
    "longrope_short": ({**FACTORS, "original_max_position_embeddings": 32}, 32),
    "longrope_long": ({**FACTORS, "original_max_position_embeddings": 32, "factor": 6.0}, 33),
    "longrope_factor": (
        {**FACTORS, "original_max_position_embeddings": 32, "attention_factor": 1.3},
        60,
    ),
}


def reference_of(name: str, parameters: dict, partial: float = 1.0) -> torch.nn.Module:
    """transformers' rotary embedding with these settings."""
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=None,
    )
    config.rope_parameters = {
        "rope_type": name.split("_")[0],
        "rope_theta": 10000.0,
        "partial_rotary_factor": partial,
        **parameters,
    }
    return modeling_llama.LlamaRotaryEmbedding(config)


def settings_of(name: str, parameters: dict, partial: float = 1.0) -> RopeSettings:
    """The same settings in our form."""
    kind = name.split("_")[0]
    ours = {("theta" if key == "rope_theta" else key): v for key, v in parameters.items()}
    if kind == "dynamic" or (kind == "longrope" and "factor" not in ours):
        ours["max_position_embeddings"] = 64
    return RopeSettings(type=kind, partial=partial, **ours)


def signed(sin: torch.Tensor) -> torch.Tensor:
    """transformers' sin [..., dim] with our signs (half style)."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


@pytest.mark.parametrize("name", CASES)
def test_tables_and_rotated_queries_equal_transformers(name):
    parameters, length = CASES[name]
    partial = 0.75 if name.startswith("longrope") else 1.0
    ctx = ForwardContext.dense(length)
    q = randn(1, length, 3, HEAD_DIM)
    cos, sin = reference_of(name, parameters, partial)(q, ctx.positions[None])
    dim = int(HEAD_DIM * partial)
    rope = RotaryEmbedding(settings_of(name, parameters, partial), dim)
    our_cos, our_sin = rope(ctx, torch.float32)
    torch.testing.assert_close(our_cos[:, 0], cos[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(our_sin[:, 0], signed(sin[0]), rtol=1e-5, atol=2e-5)
    heads = q.transpose(1, 2)
    rotated, _ = modeling_phi3.apply_rotary_pos_emb(heads, heads, cos, sin)
    got = apply_rotary(q, our_cos, our_sin, "half").transpose(1, 2)
    torch.testing.assert_close(got, rotated, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("partial", [0.25, 0.5, 0.75])
def test_partial_rotation_leaves_the_last_dims_alone(partial):
    config = GPTNeoXConfig(hidden_size=64, num_attention_heads=4, pad_token_id=None)
    config.rope_parameters = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": partial,
    }
    ctx = ForwardContext.dense(9)
    q = randn(2, 9, 3, HEAD_DIM)
    cos, sin = modeling_gpt_neox.GPTNeoXRotaryEmbedding(config)(q, ctx.positions[None])
    heads = q.transpose(1, 2)
    rotated, _ = modeling_gpt_neox.apply_rotary_pos_emb(heads, heads, cos, sin)
    settings = RopeSettings(partial=partial)
    rope = RotaryEmbedding(settings, rotary_dim(settings, HEAD_DIM, "attn"))
    got = apply_rotary(q, *rope(ctx, q.dtype), "half")
    torch.testing.assert_close(got.transpose(1, 2), rotated, rtol=1e-6, atol=1e-6)
    assert torch.equal(got[..., rope.dim :], q[..., rope.dim :])


@pytest.mark.parametrize("module", [modeling_glm, modeling_cohere], ids=["glm", "cohere"])
def test_interleaved_style_keeps_pairs_in_place(module):
    config_class = GlmConfig if module is modeling_glm else CohereConfig
    config = config_class(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=HEAD_DIM,
        pad_token_id=None,
    )
    partial = 0.5 if module is modeling_glm else 1.0
    config.rope_parameters = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": partial,
    }
    embedding = "GlmRotaryEmbedding" if module is modeling_glm else "CohereRotaryEmbedding"
    ctx = ForwardContext.dense(9)
    q = randn(2, 9, 3, HEAD_DIM)
    cos, sin = getattr(module, embedding)(config)(q, ctx.positions[None])
    heads = q.transpose(1, 2)
    rotated, _ = module.apply_rotary_pos_emb(heads, heads, cos, sin)
    rope = RotaryEmbedding(
        RopeSettings(partial=partial, style="interleaved"), int(HEAD_DIM * partial)
    )
    got = apply_rotary(q, *rope(ctx, q.dtype), "interleaved").transpose(1, 2)
    torch.testing.assert_close(got, rotated, rtol=1e-6, atol=1e-6)


def test_ntk_alpha_equals_that_of_hunyuan():
    config = HunYuanDenseV1Config(head_dim=HEAD_DIM, pad_token_id=None)
    config.rope_parameters = {
        "rope_type": "dynamic",
        "rope_theta": 500.0,
        "alpha": 9.0,
        "factor": 2.0,
    }
    ctx = ForwardContext.dense(200)
    reference = modeling_hunyuan_v1_dense.HunYuanDenseV1RotaryEmbedding(config)
    cos, sin = reference(randn(1), ctx.positions[None])
    rope = RotaryEmbedding(RopeSettings(type="ntk_alpha", theta=500.0, alpha=9.0), HEAD_DIM)
    our_cos, our_sin = rope(ctx, torch.float32)
    torch.testing.assert_close(our_cos[:, 0], cos[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(our_sin[:, 0], signed(sin[0]), rtol=1e-5, atol=2e-5)


def test_longrope_may_have_an_amplitude_on_either_side_of_the_original_length():
    mscales = {"short_mscale": 1.2, "long_mscale": 1.4}
    parameters = {**FACTORS, "original_max_position_embeddings": 32, **mscales}
    settings = RopeSettings(type="longrope", theta=100.0, **parameters)
    config = PhimoeConfig(hidden_size=48, num_attention_heads=4, max_position_embeddings=64)
    config.rope_parameters = {"rope_type": "longrope", "rope_theta": 100.0, **parameters}
    ctx = ForwardContext.dense(32)
    cos, sin = modeling_phimoe.PhimoeRotaryEmbedding(config)(randn(1), ctx.positions[None])
    our_cos, our_sin = RotaryEmbedding(settings, 12)(ctx, torch.float32)
    torch.testing.assert_close(our_cos[:, 0], cos[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(our_sin[:, 0], signed(sin[0]), rtol=1e-5, atol=2e-5)
    # transformers keeps the short factors for long texts, unlike the model's own code.
    del parameters["short_mscale"], parameters["long_mscale"]
    plain = RopeSettings(type="longrope", theta=100.0, **parameters, attention_factor=1.0)
    ctx = ForwardContext.dense(33)
    for ours, base in zip(
        RotaryEmbedding(settings, 12)(ctx, torch.float32),
        RotaryEmbedding(plain, 12)(ctx, torch.float32),
        strict=True,
    ):
        torch.testing.assert_close(ours, base * 1.4)


def test_bfloat16_tables_are_rounded_float32_ones():
    ctx = ForwardContext.dense(300)
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, pad_token_id=None)
    reference = modeling_llama.LlamaRotaryEmbedding(config)
    cos, sin = reference(randn(1, dtype=torch.bfloat16), ctx.positions[None])
    rope = RotaryEmbedding(RopeSettings(), HEAD_DIM)
    our_cos, our_sin = rope(ctx, torch.bfloat16)
    assert torch.equal(our_cos[:, 0], cos[0]) and torch.equal(our_sin[:, 0], signed(sin[0]))


@pytest.mark.parametrize("name", ["dynamic_long", "longrope_long"])
def test_a_sequence_is_rotated_alike_whoever_it_is_batched_with(name):
    parameters, _ = CASES[name]
    partial = 0.75 if name.startswith("longrope") else 1.0
    settings = settings_of(name, parameters, partial)
    rope = RotaryEmbedding(settings, int(HEAD_DIM * partial))

    def tables(*lengths: int) -> list[torch.Tensor]:
        ctx = ForwardContext(
            positions=torch.cat([torch.arange(n) for n in lengths]),
            sequence_lengths=torch.cat([torch.full((n,), n) for n in lengths]),
        )
        return list(rope(ctx, torch.float32)[0].split(lengths))

    short, long = tables(20, 150)
    assert torch.equal(short, tables(20)[0])
    assert torch.equal(long, tables(150)[0])
    assert not torch.allclose(short, long[:20], atol=1e-3)


def test_equal_settings_share_the_tables_of_a_pass():
    ctx = ForwardContext.dense(5)
    tables = RotaryEmbedding(RopeSettings(), 8)(ctx, torch.float32)
    assert RotaryEmbedding(RopeSettings(theta=10000), 8)(ctx, torch.float32)[0] is tables[0]
    for other in (
        RotaryEmbedding(RopeSettings(theta=500.0), 8),
        RotaryEmbedding(RopeSettings(), 4),
        RotaryEmbedding(RopeSettings(style="interleaved"), 8),
    ):
        assert other(ctx, torch.float32)[0] is not tables[0]
    assert RotaryEmbedding(RopeSettings(), 8)(ctx, torch.bfloat16)[0].dtype == torch.bfloat16


def test_buffers_are_not_saved_and_survive_moves_and_casts():
    settings = settings_of("longrope_long", CASES["longrope_long"][0])
    expected = RotaryEmbedding(settings, 12)
    with torch.device("meta"):
        rope = RotaryEmbedding(settings, 12)
    assert rope.inv_freq.is_meta and not rope.state_dict()
    rope.reset_buffers("cpu")
    for moved in (rope, rope.to_empty(device="cpu"), rope.to(torch.bfloat16), rope.half()):
        assert moved.inv_freq.dtype == moved.long_inv_freq.dtype == torch.float32
        assert torch.equal(moved.inv_freq, expected.inv_freq)
        assert torch.equal(moved.long_inv_freq, expected.long_inv_freq)


@pytest.mark.parametrize(
    ("settings", "head_dim", "message"),
    [
        ({"partial": 0.3}, 10, "gives 3 rotated dimensions"),
        ({"partial": 0.1}, 8, "gives 0 rotated dimensions"),
        ({"type": "dynamic", "factor": 2.0, "max_position_embeddings": 8}, 2, "more than 2"),
        (
            {"type": "longrope", **FACTORS, "original_max_position_embeddings": 8, "factor": 2.0},
            16,
            "have 6 numbers; 16 rotated dimensions need 8",
        ),
    ],
)
def test_settings_that_do_not_fit_the_head_are_refused(settings, head_dim, message):
    with pytest.raises(SpecError, match=rf"layers\.1\.attn: .*{message}"):
        rotary_dim(RopeSettings(**settings), head_dim, "layers.1.attn")
