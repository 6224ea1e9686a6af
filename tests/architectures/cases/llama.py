"""Llama, Qwen, Mistral, Phi-3: the plain line."""

from __future__ import annotations

from cases.case import NARROW, TIED, WIDE, WINDOW, WINDOWS, Case, family, longrope, rope, yarn

_llama = family("llama", "LlamaConfig", WIDE)
_qwen2 = family("qwen2", "Qwen2Config", NARROW)
_qwen3 = family("qwen3", "Qwen3Config", WIDE)
_mistral = family("mistral", "MistralConfig", WIDE)
_phi3 = family("phi3", "Phi3Config", {**NARROW, "pad_token_id": 0, "num_hidden_layers": 2})

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_MSCALES = {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_slow": 0.5, "truncate": False}

CASES: tuple[Case, ...] = (
    _llama("biases", {"attention_bias": True, "mlp_bias": True, **rope()}),
    _llama("tied-mha", {"num_key_value_heads": 4, "head_dim": None, **TIED}),
    _llama("mqa-gelu", {"num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"}),
    _llama("llama3-rope", rope("llama3", factor=8.0, **_LLAMA3)),
    _llama("linear-rope", rope("linear", factor=3.0)),
    _llama("dynamic-rope-short-text", rope("dynamic", factor=3.0)),
    _llama(
        "dynamic-rope-long-text",
        {"max_position_embeddings": 11, **rope("dynamic", factor=3.0)},
        length_dependent=True,
    ),
    _llama("yarn-rope", yarn(64, beta_fast=4.0)),
    _llama("yarn-rope-mscales", yarn(64, **_MSCALES)),
    _qwen2("windows", {**WINDOWS, **rope()}),
    _qwen2("tied", {"sliding_window": WINDOW, "max_window_layers": 1, **TIED}),
    _qwen3("windows-tied", {**WINDOWS, **TIED}),
    _qwen3("biases-yarn", {"attention_bias": True, "sliding_window": WINDOW, **yarn(16)}),
    _mistral("window", {"sliding_window": WINDOW}),
    _mistral("full-tied", {"head_dim": None, "sliding_window": None, **TIED}),
    _phi3("window-partial", {"sliding_window": WINDOW, **rope(partial_rotary_factor=0.5)}),
    _phi3("longrope-short-text", longrope(32), hub={"rope_scaling": {"type": "su"}}),
    _phi3(
        "longrope-long-text-tied",
        {**longrope(11), **TIED},
        hub={"rope_scaling": {"type": "yarn"}},
    ),
)
