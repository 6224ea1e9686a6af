"""Broken YAMLs: verify names the block at fault, its line, and what makes it equal."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from assembler import verify_model
from assembler.verifying.report import Difference


class Broken(NamedTuple):
    """A mistake in a conf or a map, and what has to be said of it."""

    base: str  # the shipped conf that is right
    conf: str  # what the conf says otherwise
    place: str
    cause: str
    weights: str = ""  # what the map says otherwise
    model_type: str = ""  # if it is not `base`


def block(name: str, fields: str) -> str:
    return f"layers:\n  blocks:\n    {name}: {{{fields}}}\n"


def rule(text: str) -> str:
    return f"  layers.{{i}}:\n    {text}\n"


FIELDS = {
    "rope style": Broken(
        "llama",
        block("attn", "rope: {theta: 10000.0, style: interleaved}"),
        "layers.0.attn",
        "rope.style: half",
    ),
    "rope style of another": Broken(
        "gptj", block("attn", "rope: {style: half}"), "layers.0.attn", "rope.style: interleaved"
    ),
    "offset of a norm": Broken(
        "gemma2", block("attn_norm", "offset: 0"), "layers.0.attn_norm", "offset: 1"
    ),
    "eps of a norm": Broken(
        "llama",
        block("mlp_norm", "eps: 1.0e-6"),
        "layers.0.mlp_norm",
        "eps: 0.002 (rms_norm_eps of config.json)",
    ),
    "type of a norm": Broken(
        "llama",
        block("attn_norm", "block: LayerNorm, eps: 2.0e-3, bias: false"),
        "layers.0.attn_norm",
        "block: RMSNorm",
    ),
    "scale": Broken(
        "gemma2",
        block("attn", "scale: null"),
        "layers.0.attn",
        "scale: 0.0625 (query_pre_attn_scalar ** -0.5 of config.json)",
    ),
    "window": Broken(
        "mistral",
        block("attn", "window: \"${calc:'sliding_window + 1'}\""),
        "layers.0.attn",
        "window: 7",
    ),
    "activation": Broken(
        "gpt2",
        block("mlp", "activation: gelu"),
        "layers.0.mlp",
        "activation: gelu_new (activation_function of config.json)",
    ),
    "theta": Broken(
        "llama",
        block("attn", "rope: {theta: 500.0}"),
        "layers.0.attn",
        "rope.theta: 10000 (rope_theta of config.json)",
    ),
    "part of a head": Broken(
        "gpt_neox",
        block("attn", "rope: {theta: 10000.0, partial: 0.5}"),
        "layers.0.attn",
        "rope.partial: 0.25 (partial_rotary_factor of config.json)",
    ),
    "place of a QK-norm": Broken(
        "qwen3",
        block(
            "attn",
            "qk_norm: {block: QKNorm, norm: {block: RMSNorm, eps: 2.0e-3}, position: after}",
        ),
        "layers.0.attn",
        "qk_norm.position: before",
    ),
    "place of a QK-norm in its short form": Broken(
        "hunyuan_v1_dense",
        block("attn", "qk_norm: {block: RMSNorm, eps: 2.0e-3}"),
        "layers.0.attn",
        "qk_norm.position: after",
    ),
    "soft-cap": Broken(
        "gemma2",
        block("attn", "softcap: null"),
        "layers.0.attn",
        "softcap: 50 (attn_logit_softcapping of config.json)",
    ),
    "router": Broken(
        "mixtral",
        block("moe", "router: {block: Router, scores: softmax, normalise: false}"),
        "layers.0.moe",
        "router.normalise: true",
    ),
    "scale of embeddings": Broken(
        "gemma", "embed: {scale: 1.0}\n", "embed", "scale: 8 (sqrt(hidden_size))"
    ),
    "a norm without weights": Broken(
        "olmo",
        block("attn_norm", "eps: 0.3"),
        "layers.0.attn_norm",
        "eps: 1e-05",
    ),
    "a kind of layer": Broken(
        "gemma3",
        "layers: {variants: {full_attention: {blocks: {attn: {window: 4}}}}}\n",
        "layers.5.attn",
        "window: null",
        model_type="gemma3_text",
    ),
}
WEIGHTS = {
    "gate and up": Broken(
        "llama",
        "",
        "layers.0.mlp",
        "the parts of gate_up in the order up, gate",
        rule("mlp.gate_up: [mlp.up_proj, mlp.gate_proj]"),
    ),
    "k and v": Broken(
        "llama",
        "",
        "layers.0.attn",
        "the parts of qkv in the order q, v, k",
        rule("attn.qkv: [self_attn.q_proj, self_attn.v_proj, self_attn.k_proj]"),
    ),
    "parts of a head": Broken(
        "gpt_neox",
        "",
        "layers.0.attn",
        "qkv: per: head",
        "  layers.{i}.attn.qkv: "
        "{from: 'gpt_neox.layers.{i}.attention.query_key_value', parts: [q, k, v]}\n",
    ),
    "transposed": Broken(
        "llama",
        "",
        "layers.0.attn",
        "o.weight transposed",
        rule("attn.o: {from: self_attn.o_proj, transpose: true}"),
    ),
    "norms of queries and keys": Broken(
        "qwen3",
        "",
        "layers.0.attn",
        "q_norm and k_norm exchanged",
        rule("attn.q_norm: self_attn.k_norm\n    attn.k_norm: self_attn.q_norm"),
    ),
}


def difference(broken: Broken) -> Difference:
    report = verify_model("tiny", "own", model_type=broken.model_type or broken.base)
    assert not report.passed and report.conf == "own"
    assert report.difference is not None
    return report.difference


@pytest.mark.parametrize("broken", FIELDS.values(), ids=FIELDS)
def test_a_wrong_field(broken: Broken, own) -> None:
    own(broken.base, broken.conf)
    found = difference(broken)
    assert (found.kind, found.place) == ("block", broken.place)
    assert found.causes[0].change == broken.cause
    assert found.causes[0].kind == "field"
    line = 3 if broken.conf.startswith("layers:\n") else 1
    assert f"conf/own.yaml:{line + 1}" in found.where.split(", ")
    assert found.input_error is None or found.input_error < 3e-5 < found.alone_error


@pytest.mark.parametrize("broken", WEIGHTS.values(), ids=WEIGHTS)
def test_a_wrong_rule(broken: Broken, own) -> None:
    own(broken.base, broken.conf, broken.weights)
    found = difference(broken)
    assert (found.kind, found.place) == ("block", broken.place)
    cause = found.causes[0]
    assert (cause.change, cause.kind) == (broken.cause, "weights")
    assert cause.where.startswith("weight_maps/own.yaml:")


WIRINGS = {
    "norm after attention": Broken(
        "llama",
        "layers: {wiring: [x = x + attn_norm(attn(x)), x = x + mlp(mlp_norm(x))]}\n",
        "layers.0.attn",
        "attn_norm(...)",
    ),
    "side by side": Broken(
        "llama",
        "layers: {wiring: [x = x + attn(attn_norm(x)) + mlp(mlp_norm(x))]}\n",
        "layers.0.mlp_norm",
        "x + attn(...)",
    ),
    "a multiplier forgotten": Broken(
        "granite",
        "layers: {wiring: [x = x + attn(attn_norm(x)), x = x + mlp(mlp_norm(x))]}\n",
        "layers.0.mlp_norm",
        "x + 2.25 * attn(...)",
    ),
    "the last of a layer": Broken(
        "llama",
        "layers: {wiring: [x = x + attn(attn_norm(x)), x = x + 0.5 * mlp(mlp_norm(x))]}\n",
        "layers.0",
        "x + attn(...) + mlp(...)",
    ),
    "logits not divided": Broken(
        "granite",
        'wiring: ["x = layers(1.75 * embed(tokens))", logits = lm_head(norm(x))]\n',
        "logits",
        "0.5 * lm_head(...)",
    ),
    "embeddings not multiplied": Broken(
        "granite",
        "wiring: [x = layers(embed(tokens)), logits = lm_head(norm(x)) / 2.0]\n",
        "what the layers are given",
        "1.75 * embed(...)",
    ),
    "no soft-cap": Broken(
        "gemma2",
        "wiring: [x = layers(embed(tokens)), logits = lm_head(norm(x))]\n",
        "logits",
        "softcap(lm_head(...), 30.0)",
    ),
}


@pytest.mark.parametrize("broken", WIRINGS.values(), ids=WIRINGS)
def test_wrong_wiring(broken: Broken, own) -> None:
    own(broken.base, broken.conf)
    found = difference(broken)
    assert (found.kind, found.place) == ("wiring", broken.place)
    assert found.reference_wiring == broken.cause
    assert found.equation_where == "conf/own.yaml:2"
    assert found.equation in broken.conf and found.causes == ()


def test_two_mistakes_of_which_neither_alone_helps(own) -> None:
    """Norms of queries and keys off, and rotated the other way: random either way."""
    own("qwen3", block("attn", "rope: {theta: 1.0e4, style: interleaved}, qk_norm: {offset: 1}"))
    found = difference(Broken("qwen3", "", "", ""))
    changes = {cause.change for cause in found.causes}
    assert changes == {"qk_norm.offset: 0", "rope.style: half"}


def test_two_mistakes_in_one_block(own) -> None:
    own("gemma2", block("attn", "softcap: null, rope: {theta: 1.0e4, style: interleaved}"))
    found = difference(Broken("gemma2", "", "", ""))
    assert {cause.change.partition(":")[0] for cause in found.causes} == {"softcap", "rope.style"}
    assert found.causes[1].error < 3e-5 < found.causes[0].error


def test_what_is_inside_a_block(own) -> None:
    own("qwen3", "", rule("attn.q_norm: self_attn.k_norm\n    attn.k_norm: self_attn.q_norm"))
    inside = {item.name: item for item in difference(Broken("qwen3", "", "", "")).inside}
    assert inside["layers.0.attn.qkv.v"].module == "model.layers.0.self_attn.v_proj"
    assert inside["layers.0.attn.qkv.v"].error < 3e-5


def test_a_block_that_cannot_be_compared_is_named(own) -> None:
    """Llama 4's module of experts gives them one by one, and its mixture holds the shared one."""
    own("llama4_text", block("moe", "router: {scale: 3.0}"))
    found = difference(Broken("llama4_text", "", "", ""))
    assert (found.kind, found.place, found.uncompared) == ("wiring", "layers.0", ("layers.0.moe",))


def test_a_difference_that_no_change_explains(own) -> None:
    own(
        "llama",
        block("mlp", "block: GatedMLP, activation: silu, intermediate_size: 40, limit: 0.1"),
    )
    found = difference(Broken("llama", "", "", ""))
    assert found.place == "layers.0.mlp"
    assert [cause.change for cause in found.causes] == ["limit: null"]
