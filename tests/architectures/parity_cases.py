"""The tiny models that every shipped conf is compared on: one table, one row a variant.

Sizes are odd and every knob is alive: an eps large enough to see, a window shorter than the text,
soft-caps that bend, biases everywhere, RoPE bases small enough to turn within 23 positions. A wrong
reading of any one field then moves the logits by far more than float32 noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCAB_SIZE = 101
LENGTH = 23  # tokens of each text; windows and pretrained lengths lie below it
WINDOW = 7

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_LLAMA = {
    **_COMMON,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 2e-3,
}
_WIDE_HEADS = {**_LLAMA, "head_dim": 20}  # hidden_size / num_attention_heads is 12
_QWEN_WINDOWS = {
    "num_hidden_layers": 4,
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 2,
}
_GEMMA = {
    **_LLAMA,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 20,
    "sliding_window": WINDOW,
}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 56,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "layer_norm_epsilon": 2e-3,
}
_NEOX = {**_COMMON, "num_hidden_layers": 3, "hidden_size": 64, "layer_norm_eps": 2e-3}


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    """The knob that gives all layers one RoPE of this kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **settings}}


def _longrope(original: int, frequencies: int) -> dict[str, Any]:
    """LongRoPE with `frequencies` factors, pretrained on texts of `original` tokens."""
    return {
        "original_max_position_embeddings": original,
        **_rope(
            "longrope",
            short_factor=[1.0 + 0.3 * n for n in range(frequencies)],
            long_factor=[1.5 + 1.1 * n for n in range(frequencies)],
        ),
    }


def _gemma3_rope(**full: Any) -> dict[str, Any]:
    """One RoPE for each kind of layer; `full` scales that of the full layers."""
    return {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 300.0, **full},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        }
    }


@dataclass(frozen=True)
class Case:
    """One tiny model of one architecture."""

    name: str
    conf: str  # the conf that must be detected
    config_class: str  # in transformers
    knobs: Mapping[str, Any] = field(repr=False)
    # How the hub's config.json differs from what transformers 5 writes, besides the RoPE fields and
    # `layer_types`.
    hub: Mapping[str, Any] = field(default_factory=dict)
    # Tensors that published files hold besides the weights, and the prefix they leave out.
    extra_tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dropped_prefix: str = ""
    # The frequencies depend on the length of the text, so decoding is not a longer prefill.
    length_dependent: bool = False

    def __str__(self) -> str:
        return self.name


def _llama(name: str, **knobs: Any) -> Case:
    return Case(f"llama-{name}", "llama", "LlamaConfig", {**_WIDE_HEADS, **knobs})


_LLAMA_CASES = [
    _llama("biases", attention_bias=True, mlp_bias=True, **_rope("default")),
    _llama("tied-mha", tie_word_embeddings=True, num_key_value_heads=4, head_dim=None),
    _llama("mqa-gelu", num_key_value_heads=1, hidden_act="gelu_pytorch_tanh"),
    _llama(
        "llama3-rope",
        **_rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    _llama("linear-rope", **_rope("linear", factor=3.0)),
    _llama("dynamic-rope-short", **_rope("dynamic", factor=3.0)),
    Case(
        "llama-dynamic-rope-long",
        "llama",
        "LlamaConfig",
        {**_WIDE_HEADS, "max_position_embeddings": 11, **_rope("dynamic", factor=3.0)},
        length_dependent=True,
    ),
    _llama(
        "yarn-rope",
        **_rope("yarn", factor=4.0, beta_fast=4.0, original_max_position_embeddings=64),
    ),
    _llama(
        "yarn-rope-mscale",
        **_rope(
            "yarn",
            factor=4.0,
            mscale=0.7,
            mscale_all_dim=1.3,
            beta_slow=0.5,
            truncate=False,
            original_max_position_embeddings=64,
        ),
    ),
]

_QWEN_CASES = [
    Case("qwen2-windows", "qwen2", "Qwen2Config", {**_LLAMA, **_QWEN_WINDOWS, **_rope("default")}),
    Case(
        "qwen2-tied",
        "qwen2",
        "Qwen2Config",
        {**_LLAMA, "tie_word_embeddings": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Case(
        "qwen3-windows",
        "qwen3",
        "Qwen3Config",
        {**_WIDE_HEADS, **_QWEN_WINDOWS, "tie_word_embeddings": True},
    ),
    Case(
        "qwen3-biases-yarn",
        "qwen3",
        "Qwen3Config",
        {
            **_WIDE_HEADS,
            "attention_bias": True,
            "sliding_window": WINDOW,
            **_rope("yarn", factor=4.0, original_max_position_embeddings=16),
        },
    ),
]

_MISTRAL_CASES = [
    Case("mistral-window", "mistral", "MistralConfig", {**_WIDE_HEADS, "sliding_window": WINDOW}),
    Case(
        "mistral-full-tied",
        "mistral",
        "MistralConfig",
        {**_LLAMA, "head_dim": None, "sliding_window": None, "tie_word_embeddings": True},
    ),
]

_GEMMA_CASES = [
    Case(
        "gemma2-softcaps",
        "gemma2",
        "Gemma2Config",
        {
            **_GEMMA,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            **_rope("default"),
        },
        hub={"hidden_act": "gelu"},  # beside hidden_activation, which alone counts
    ),
    Case(
        "gemma2-uncapped-untied",
        "gemma2",
        "Gemma2Config",
        {
            **_GEMMA,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    Case(
        "gemma3-text",
        "gemma3",
        "Gemma3TextConfig",
        {**_GEMMA, "sliding_window_pattern": 3, **_gemma3_rope()},
        hub={"sliding_window_pattern": 3},
    ),
    Case(
        "gemma3-text-scaled-capped",
        "gemma3",
        "Gemma3TextConfig",
        {
            **_GEMMA,
            "num_hidden_layers": 7,
            "attention_bias": True,
            "final_logit_softcapping": 2.0,
            **_gemma3_rope(rope_type="linear", factor=8.0),
        },
    ),
    Case(
        "gemma3-multimodal",
        "gemma3",
        "Gemma3Config",
        {
            "text_config": {
                **_GEMMA,
                "sliding_window_pattern": 2,
                **_gemma3_rope(rope_type="linear", factor=8.0),
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "image_token_index": 100,
            "boi_token_index": 99,
            "eoi_token_index": 98,
        },
        hub={"sliding_window_pattern": 2},
    ),
]

_PHI3 = {**_LLAMA, "pad_token_id": 0, "num_hidden_layers": 2}
_PHI3_CASES = [
    Case(
        "phi3-window-partial",
        "phi3",
        "Phi3Config",
        {**_PHI3, "sliding_window": WINDOW, **_rope("default", partial_rotary_factor=0.5)},
    ),
    Case(
        "phi3-longrope-short-text",
        "phi3",
        "Phi3Config",
        {**_PHI3, **_longrope(original=32, frequencies=6)},
        hub={"rope_scaling": {"type": "su"}},
    ),
    Case(
        "phi3-longrope-long-text",
        "phi3",
        "Phi3Config",
        {**_PHI3, "tie_word_embeddings": True, **_longrope(original=11, frequencies=6)},
        hub={"rope_scaling": {"type": "yarn"}},
    ),
]

_GPT2_CASES = [
    Case("gpt2", "gpt2", "GPT2Config", {**_GPT2, "n_inner": 40}),
    Case(
        "gpt2-published-names",
        "gpt2",
        "GPT2Config",
        _GPT2,
        extra_tensors={"h.{i}.attn.bias": (1, 1, 64, 64), "h.{i}.attn.masked_bias": ()},
        dropped_prefix="transformer.",
    ),
    Case(
        "gpt2-unscaled-untied",
        "gpt2",
        "GPT2Config",
        {
            **_GPT2,
            "scale_attn_weights": False,
            "tie_word_embeddings": False,
            "activation_function": "relu",
        },
        dropped_prefix="transformer.",
    ),
]

_NEOX_CASES = [
    Case(
        "gpt_neox-parallel",
        "gpt_neox",
        "GPTNeoXConfig",
        {**_NEOX, "hidden_act": "gelu_fast"},
        extra_tensors={
            "gpt_neox.layers.{i}.attention.bias": (1, 1, 64, 64),
            "gpt_neox.layers.{i}.attention.masked_bias": (),
            "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": (2,),
        },
    ),
    Case(
        "gpt_neox-sequential",
        "gpt_neox",
        "GPTNeoXConfig",
        {
            **_NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            **_rope("default", partial_rotary_factor=0.5),
        },
    ),
]

CASES: tuple[Case, ...] = (
    *_LLAMA_CASES,
    *_QWEN_CASES,
    *_MISTRAL_CASES,
    *_GEMMA_CASES,
    *_PHI3_CASES,
    *_GPT2_CASES,
    *_NEOX_CASES,
)
