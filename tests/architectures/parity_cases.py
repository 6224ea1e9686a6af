"""The tiny models that every shipped conf is compared on: one table, one entry a variant.

Sizes are odd and every knob is alive: an eps large enough to see, a window shorter than the text,
soft-caps that bend, biases everywhere, RoPE bases small enough to turn within 23 positions. A wrong
reading of any one field then moves the logits by far more than float32 noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

VOCAB_SIZE = 101
LENGTH = 23  # tokens of each text; windows and pretrained lengths lie below it
WINDOW = 7


@dataclass(frozen=True)
class Case:
    """One tiny model of one architecture."""

    name: str
    conf: str  # the conf that must be detected
    config_class: str  # in transformers
    knobs: Mapping[str, Any] = field(repr=False)
    # What the hub's config.json says that transformers 5 does not write, besides the RoPE fields.
    hub: Mapping[str, Any] = field(default_factory=dict)
    # Tensors that published files hold besides the weights, and the prefix they leave out.
    extra_tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped_prefix: str = ""
    # The frequencies depend on the length of the text, so decoding is not a longer prefill.
    length_dependent: bool = False


def _family(conf: str, config_class: str, base: Mapping[str, Any]) -> Callable[..., Case]:
    """A maker of cases that share a config class and most knobs."""

    def case(variant: str, knobs: Mapping[str, Any], **about: Any) -> Case:
        return Case(f"{conf}-{variant}", conf, config_class, {**base, **knobs}, **about)

    return case


def _rope(kind: str = "default", **settings: Any) -> dict[str, Any]:
    """The knob that gives all layers one RoPE of this kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **settings}}


def _yarn(original: int, **settings: Any) -> dict[str, Any]:
    return _rope("yarn", factor=4.0, original_max_position_embeddings=original, **settings)


def _longrope(original: int) -> dict[str, Any]:
    """LongRoPE over the 6 frequencies of a head of 12, pretrained on texts of `original` tokens."""
    short = [1.0 + 0.3 * n for n in range(6)]
    long = [1.5 + 1.1 * n for n in range(6)]
    rope = _rope("longrope", short_factor=short, long_factor=long)
    return {"original_max_position_embeddings": original, **rope}


def _rope_of_each_kind(**full: Any) -> dict[str, Any]:
    """Gemma 3: one RoPE for each kind of layer; `full` scales that of the full layers."""
    sliding = {"rope_type": "default", "rope_theta": 50.0}
    full = {"rope_type": "default", "rope_theta": 300.0, **full}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_NARROW = {**_COMMON, "num_key_value_heads": 2, "rms_norm_eps": 2e-3}
_WIDE = {**_NARROW, "head_dim": 20}  # hidden_size / num_attention_heads is 12
_WINDOWS = {
    "num_hidden_layers": 4,
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 2,
}
_GEMMA = {
    **_NARROW,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 20,
    "sliding_window": WINDOW,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 56,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "layer_norm_epsilon": 2e-3,
}
_NEOX = {**_COMMON, "hidden_size": 64, "layer_norm_eps": 2e-3}
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}

_llama = _family("llama", "LlamaConfig", _WIDE)
_qwen2 = _family("qwen2", "Qwen2Config", _NARROW)
_qwen3 = _family("qwen3", "Qwen3Config", _WIDE)
_mistral = _family("mistral", "MistralConfig", _WIDE)
_gemma2 = _family("gemma2", "Gemma2Config", _GEMMA)
_gemma3 = _family("gemma3", "Gemma3TextConfig", _GEMMA)
_gemma3_multimodal = _family("gemma3", "Gemma3Config", {"vision_config": _VISION})
_phi3 = _family("phi3", "Phi3Config", {**_NARROW, "pad_token_id": 0, "num_hidden_layers": 2})
_gpt2 = _family("gpt2", "GPT2Config", _GPT2)
_neox = _family("gpt_neox", "GPTNeoXConfig", _NEOX)

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_MSCALES = {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_slow": 0.5, "truncate": False}
_IMAGE_TOKENS = {"image_token_index": 100, "boi_token_index": 99, "eoi_token_index": 98}

CASES: tuple[Case, ...] = (
    _llama("biases", {"attention_bias": True, "mlp_bias": True, **_rope()}),
    _llama("tied-mha", {"num_key_value_heads": 4, "head_dim": None, **_TIED}),
    _llama("mqa-gelu", {"num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"}),
    _llama("llama3-rope", _rope("llama3", factor=8.0, **_LLAMA3)),
    _llama("linear-rope", _rope("linear", factor=3.0)),
    _llama("dynamic-rope-short-text", _rope("dynamic", factor=3.0)),
    _llama(
        "dynamic-rope-long-text",
        {"max_position_embeddings": 11, **_rope("dynamic", factor=3.0)},
        length_dependent=True,
    ),
    _llama("yarn-rope", _yarn(64, beta_fast=4.0)),
    _llama("yarn-rope-mscales", _yarn(64, **_MSCALES)),
    _qwen2("windows", {**_WINDOWS, **_rope()}),
    _qwen2("tied", {"sliding_window": WINDOW, "max_window_layers": 1, **_TIED}),
    _qwen3("windows-tied", {**_WINDOWS, **_TIED}),
    _qwen3("biases-yarn", {"attention_bias": True, "sliding_window": WINDOW, **_yarn(16)}),
    _mistral("window", {"sliding_window": WINDOW}),
    _mistral("full-tied", {"head_dim": None, "sliding_window": None, **_TIED}),
    _gemma2(
        "softcaps",
        {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, **_rope()},
        hub={"hidden_act": "gelu"},  # beside hidden_activation, which alone counts
    ),
    _gemma2(
        "uncapped-untied-biases",
        {
            "num_hidden_layers": 3,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            **_UNTIED,
        },
    ),
    _gemma3(
        "text",
        {"sliding_window_pattern": 3, **_rope_of_each_kind()},
        hub={"sliding_window_pattern": 3},
    ),
    _gemma3(
        "text-scaled-capped",
        {
            "num_hidden_layers": 7,
            "attention_bias": True,
            "final_logit_softcapping": 2.0,
            **_rope_of_each_kind(rope_type="linear", factor=8.0),
        },
    ),
    _gemma3_multimodal(
        "multimodal",
        {
            "text_config": {
                **_GEMMA,
                "sliding_window_pattern": 2,
                **_rope_of_each_kind(rope_type="linear", factor=8.0),
            },
            **_IMAGE_TOKENS,
        },
        hub={"sliding_window_pattern": 2},
    ),
    _phi3("window-partial", {"sliding_window": WINDOW, **_rope(partial_rotary_factor=0.5)}),
    _phi3("longrope-short-text", _longrope(32), hub={"rope_scaling": {"type": "su"}}),
    _phi3(
        "longrope-long-text-tied",
        {**_longrope(11), **_TIED},
        hub={"rope_scaling": {"type": "yarn"}},
    ),
    _gpt2("narrow-mlp", {"n_inner": 40}),
    _gpt2(
        "published-names",
        {},
        extra_tensors={"h.{i}.attn.bias": (1, 1, 64, 64), "h.{i}.attn.masked_bias": ()},
        dropped_prefix="transformer.",
    ),
    _gpt2(
        "unscaled-untied-relu",
        {"scale_attn_weights": False, "activation_function": "relu", **_UNTIED},
        dropped_prefix="transformer.",
    ),
    _neox(
        "parallel",
        {"hidden_act": "gelu_fast"},
        extra_tensors={
            "gpt_neox.layers.{i}.attention.bias": (1, 1, 64, 64),
            "gpt_neox.layers.{i}.attention.masked_bias": (),
            "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": (2,),
        },
    ),
    _neox(
        "sequential-tied",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            **_TIED,
            **_rope(partial_rotary_factor=0.5),
        },
    ),
)
