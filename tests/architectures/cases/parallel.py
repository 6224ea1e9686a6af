"""Dense decoders away from Llama: branches side by side, LayerNorm, norms without weights."""

from __future__ import annotations

from cases.case import (
    COMMON,
    NARROW,
    TIED,
    UNTIED,
    WINDOW,
    Case,
    family,
    rope,
    rope_of_each_kind,
)

_LAYER_NORMS = {**COMMON, "num_key_value_heads": 2, "layer_norm_eps": 2e-3}
_TOKENS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
_LAYER_TYPES = ["sliding_attention", "full_attention"] * 2
_ROTATED = {"rope_type": "default", "rope_theta": 50.0, "mrope_section": [2, 2, 2]}
_ONLY_WINDOWS_TURN = {"rope_parameters": {"sliding_attention": _ROTATED, "full_attention": None}}
_BOTH_TURN = rope_of_each_kind(mrope_section=[2, 2, 2])

_cohere = family("cohere", "CohereConfig", {**_LAYER_NORMS, **_TOKENS, "logit_scale": 0.3})
_nanochat = family("nanochat", "NanoChatConfig", {**NARROW, **_TOKENS})
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_apertus = family("apertus", "ApertusConfig", {**NARROW, **_TOKENS})
_bitnet = family("bitnet", "BitNetConfig", {**NARROW, **_TOKENS})
_jais2 = family("jais2", "Jais2Config", {**_LAYER_NORMS, **_TOKENS})
_WINDOWS = {**_LAYER_NORMS, **_TOKENS, "num_hidden_layers": 4, "sliding_window": WINDOW}
_COMPASS = {**_WINDOWS, "layer_types": _LAYER_TYPES}

_cohere2 = family("cohere2", "Cohere2Config", {**_WINDOWS, "head_dim": 20})
_stablelm = family("stablelm", "StableLmConfig", {**_LAYER_NORMS, **_TOKENS, "hidden_size": 64})
_compass = family("cohere_compass", "CohereCompassTextConfig", _COMPASS)

CASES: tuple[Case, ...] = (
    _apertus("biases", {"attention_bias": True, **rope("llama3", factor=8.0, **_LLAMA3)}),
    _bitnet("tied", TIED),
    _cohere("tied", rope()),
    _cohere("qk-norms-biases", {"use_qk_norm": True, "attention_bias": True, **UNTIED}),
    _cohere2(
        "every-third-unrotated-biases",
        {"sliding_window_pattern": 3, "attention_bias": True, "logit_scale": 0.3, **rope()},
        hub={"sliding_window_pattern": 3},
    ),
    _cohere2(
        "listed-untied",
        {"layer_types": _LAYER_TYPES, **UNTIED},
        hub={"layer_types": _LAYER_TYPES},
    ),
    _stablelm(
        "parallel-qk-norms-biases",
        {
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "use_qkv_bias": True,
            **rope(partial_rotary_factor=0.5),
        },
    ),
    _stablelm("sequential-tied", {**TIED, **rope(partial_rotary_factor=0.25)}),
    _compass(
        "full-layers-unrotated",
        {"logit_scale": 0.3, **_ONLY_WINDOWS_TURN},
        hub={"layer_types": _LAYER_TYPES, **_ONLY_WINDOWS_TURN},
    ),
    _compass(
        "biases-untied",
        {"attention_bias": True, **UNTIED, **_BOTH_TURN},
        hub={"layer_types": _LAYER_TYPES, **_BOTH_TURN},
    ),
    _nanochat("softcap", {"final_logit_softcapping": 1.5, **rope()}),
    _nanochat("biases-tied", {"attention_bias": True, "final_logit_softcapping": None, **TIED}),
    _jais2("biases", rope()),
    _jais2("unbiased-tied", {"attention_bias": False, "mlp_bias": False, "head_dim": 20, **TIED}),
)
