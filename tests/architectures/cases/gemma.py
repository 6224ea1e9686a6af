"""Gemma: sandwich norms, soft-caps, windows, a RoPE for each kind of layer."""

from __future__ import annotations

from cases.case import NARROW, UNTIED, WINDOW, Case, family, rope, rope_of_each_kind

_GEMMA = {
    **NARROW,
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
_IMAGE_TOKENS = {"image_token_index": 100, "boi_token_index": 99, "eoi_token_index": 98}

_gemma2 = family("gemma2", "Gemma2Config", _GEMMA)
_gemma3 = family("gemma3", "Gemma3TextConfig", _GEMMA)
_gemma3_multimodal = family("gemma3", "Gemma3Config", {"vision_config": _VISION})

CASES: tuple[Case, ...] = (
    _gemma2(
        "softcaps",
        {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, **rope()},
        hub={"hidden_act": "gelu"},  # beside hidden_activation, which alone counts
    ),
    _gemma2(
        "uncapped-untied-biases",
        {
            "num_hidden_layers": 3,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            **UNTIED,
        },
    ),
    _gemma3(
        "text",
        {"sliding_window_pattern": 3, **rope_of_each_kind()},
        hub={"sliding_window_pattern": 3},
    ),
    _gemma3(
        "text-scaled-capped",
        {
            "num_hidden_layers": 7,
            "attention_bias": True,
            "final_logit_softcapping": 2.0,
            **rope_of_each_kind(rope_type="linear", factor=8.0),
        },
    ),
    _gemma3_multimodal(
        "multimodal",
        {
            "text_config": {
                **_GEMMA,
                "sliding_window_pattern": 2,
                **rope_of_each_kind(rope_type="linear", factor=8.0),
            },
            **_IMAGE_TOKENS,
        },
        hub={"sliding_window_pattern": 2},
    ),
)
