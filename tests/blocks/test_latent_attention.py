"""LatentAttn against the latent attention of transformers: dense, paged and split over ranks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from attention_harness import causal_mask
from block_harness import build_context, fill, randn, run_ranks
from test_attention_paged import LENGTHS, PAGE_SIZE, paged_context
from torch import nn
from torch._dynamo import lookup_backend
from transformers import DeepseekV2Config, DeepseekV3Config, MiniCPM3Config, Mistral4Config
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.minicpm3 import modeling_minicpm3
from transformers.models.mistral4 import modeling_mistral4

from assembler.blocks.context import CacheSpec, ForwardContext
from assembler.blocks.latent_attention import LatentAttn
from assembler.blocks.norms import RMSNorm
from assembler.blocks.parallel import TensorParallel
from assembler.blocks.position_scale import PositionScale
from assembler.blocks.rope import RopeSettings
from assembler.errors import SpecError
from assembler.kernels import fused
from assembler.kernels.dispatch import attention_backend

HIDDEN, LENGTH = 42, 11
SIZES = {
    "num_heads": 6,
    "q_lora_rank": 14,
    "kv_lora_rank": 10,
    "nope_head_dim": 6,
    "rope_head_dim": 4,
    "v_head_dim": 5,
    "norm": partial(RMSNorm, eps=1e-6),
}
SHAPE = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "q_lora_rank": 14,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "rms_norm_eps": 0.5,  # the latents' norms do not use it
    "attn_implementation": "eager",
}
PLAIN = {"rope_type": "default", "rope_theta": 100.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 0.7}

# name -> (transformers' attention with these settings, its module, our fields)
REFERENCES = {
    "deepseek_v3": (
        lambda: modeling_deepseek_v3.DeepseekV3Attention(
            DeepseekV3Config(
                **SHAPE,
                attention_bias=True,
                rope_parameters={"rope_type": "yarn", "rope_theta": 100.0, **YARN},
            ),
            0,
        ),
        modeling_deepseek_v3.DeepseekV3RotaryEmbedding,
        {
            "bias": True,
            "rope": RopeSettings(type="yarn", theta=100.0, style="interleaved", **YARN),
        },
    ),
    "deepseek_v2_lite": (
        lambda: modeling_deepseek_v2.DeepseekV2Attention(
            DeepseekV2Config(**{**SHAPE, "q_lora_rank": None}, rope_parameters=PLAIN), 0
        ),
        modeling_deepseek_v2.DeepseekV2RotaryEmbedding,
        {"q_lora_rank": None, "rope": RopeSettings(theta=100.0, style="interleaved")},
    ),
    "minicpm3": (
        lambda: modeling_minicpm3.MiniCPM3Attention(
            MiniCPM3Config(**SHAPE, rope_parameters=PLAIN), 0
        ),
        modeling_minicpm3.MiniCPM3RotaryEmbedding,
        {},
    ),
    "mistral4": (
        lambda: modeling_mistral4.Mistral4Attention(
            Mistral4Config(
                **SHAPE,
                rope_parameters={
                    "rope_type": "yarn",
                    "rope_theta": 100.0,
                    **YARN,
                    "llama_4_scaling_beta": 0.7,
                },
            ),
            0,
        ),
        modeling_mistral4.Mistral4RotaryEmbedding,
        {
            "rope": RopeSettings(
                type="yarn", theta=100.0, partial=0.4, style="interleaved", **YARN
            ),
            "position_scale": PositionScale(beta=0.7, length=8),
        },
    ),
}


def latent(tp: TensorParallel | None = None, **fields) -> LatentAttn:
    rope = RopeSettings(theta=100.0)
    return LatentAttn(build_context(HIDDEN, tp=tp), **{**SIZES, "rope": rope, **fields})


def copy_weights(reference: nn.Module, ours: LatentAttn) -> None:
    names = {
        "q_proj": "q",
        "q_a_proj": "q_a",
        "q_a_layernorm": "q_a_norm",
        "q_b_proj": "q_b",
        "kv_a_proj_with_mqa": "kv_a",
        "kv_a_layernorm": "kv_a_norm",
        "o_proj": "o",
    }
    state = {}
    for path, value in reference.named_parameters():
        module, leaf = path.split(".")
        if module == "kv_b_proj":  # [head, k and v, rank] there, [k and v, head, rank] here
            k, v = value.unflatten(0, (6, -1)).split((6, 5), dim=1)
            state["kv_b.weight"] = torch.cat((k.flatten(0, 1), v.flatten(0, 1)))
        else:
            state[f"{names[module]}.{leaf}"] = value
    ours.load_state_dict(state)


@pytest.mark.parametrize("name", REFERENCES)
def test_dense_equals_transformers(name):
    make, rotary, fields = REFERENCES[name]
    reference = fill(make()).eval()
    ours = latent(**fields)
    copy_weights(reference, ours)
    x = randn(2, LENGTH, HIDDEN)
    ctx = ForwardContext.dense(LENGTH)
    with torch.no_grad():
        expected = reference(
            x,
            position_embeddings=rotary(reference.config)(x, ctx.positions[None]),
            attention_mask=causal_mask(LENGTH),
            position_ids=ctx.positions[None],
        )[0]
        got = ours(x, ctx)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("name", [*REFERENCES, "nope"])
def test_prefill_in_chunks_and_decode_over_latents_equal_dense(name):
    fields = {"rope": None} if name == "nope" else REFERENCES[name][2]
    attn = fill(latent(**fields))
    attn.cache_index = 0
    assert attn.cache_spec() == CacheSpec(1, 14, value_dim=10, latent=True)
    caches = [(torch.zeros(8, PAGE_SIZE, 1, 14), None)]
    texts = [randn(length, HIDDEN, seed=s) for s, length in enumerate(LENGTHS)]
    plan = [[(0, 5), (0, 4)], [(5, 10), (4, 5)], [(10, 11), (5, 6)]]
    results: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for steps in plan:
            x = torch.cat([text[slice(*step)] for text, step in zip(texts, steps, strict=True)])
            out = attn(x, paged_context(steps, caches))
            for s, piece in enumerate(out.split([stop - start for start, stop in steps])):
                results[s].append(piece)
        for text, pieces in zip(texts, results, strict=True):
            dense = attn(text[None], ForwardContext.dense(len(text)))[0]
            torch.testing.assert_close(torch.cat(pieces), dense, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_kernel_stores_what_torch_does(monkeypatch):
    """Also traced in one graph, which holds the operation; norms with hooks are called."""
    attn = fill(latent(rope=RopeSettings(theta=100.0, style="interleaved"))).eval()
    attn.cache_index = 0
    found, seen = [], []

    def backend(graph_module, inputs):
        seen.extend(str(node.target) for node in graph_module.graph.nodes)
        return lookup_backend("aot_eager")(graph_module, inputs)

    torch.compiler.reset()
    traced = torch.compile(attn, backend=backend, fullgraph=True)
    for choice, way in (("never", attn), ("always", attn), ("always", traced)):
        monkeypatch.setattr(fused, "fused_choice", lambda choice=choice: choice)
        caches = [(torch.zeros(8, PAGE_SIZE, 1, 14), None)]
        ctx = paged_context([(0, 5), (0, 4)], caches)
        ctx = replace(ctx, attention=attention_backend("triton", "cpu"))
        with torch.no_grad():
            found.append((way(randn(9, HIDDEN), ctx), caches[0][0]))
    for out in found[1:]:
        torch.testing.assert_close(out, found[0], rtol=2e-6, atol=2e-6)
    assert sum("latent_store_kv" in name for name in seen) == 1

    heard = []
    attn.kv_a_norm.register_forward_hook(lambda *call: heard.append(call))
    with torch.no_grad():
        attn(randn(9, HIDDEN), paged_context([(0, 5), (0, 4)], caches))
    assert len(heard) == 1


@pytest.mark.parametrize("rank", [14, None])
@pytest.mark.parametrize("size", [2, 4, 6])
def test_ranks_share_the_heads_and_each_holds_the_latents(size, rank):
    x = randn(2, LENGTH, HIDDEN)
    build = partial(latent, q_lora_rank=rank, bias=True)
    whole = fill(build())
    with torch.no_grad():
        expected = whole(x, ForwardContext.dense(LENGTH))
    for got in run_ranks(size, whole, build, lambda attn: attn(x, ForwardContext.dense(LENGTH))):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_parameters_have_the_names_weight_maps_use():
    attn = latent(bias=True)
    assert {name: tuple(p.shape) for name, p in attn.named_parameters()} == {
        "q_a.weight": (14, 42),
        "q_a.bias": (14,),
        "q_a_norm.weight": (14,),
        "q_b.weight": (60, 14),
        "kv_a.weight": (14, 42),
        "kv_a.bias": (14,),
        "kv_a_norm.weight": (10,),
        "kv_b.weight": (66, 10),
        "o.weight": (42, 30),
        "o.bias": (42,),
    }
    assert [part.name for part in attn.kv_a.parts] == ["latent", "rope"]
    assert [part.name for part in attn.kv_b.parts] == ["k", "v"]


def test_a_share_that_is_not_the_rotated_part_is_refused():
    with pytest.raises(SpecError, match=r"partial 0\.5 does not fit rope_head_dim 4.* 0\.4 of a"):
        latent(rope=RopeSettings(partial=0.5))


def test_gradients_reach_every_parameter():
    attn = fill(latent(bias=True))
    x = randn(2, LENGTH, HIDDEN).requires_grad_()
    attn(x, ForwardContext.dense(LENGTH)).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in attn.parameters()) and x.grad.isfinite().all()
