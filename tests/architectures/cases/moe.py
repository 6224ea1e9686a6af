"""Mixtures of experts."""

from __future__ import annotations

from cases.case import NARROW, TIED, WIDE, WINDOW, Case, family, rope

_EXPERTS = {"num_experts_per_tok": 2}
_LOCAL = {**_EXPERTS, "num_local_experts": 5}
_NAMED = {**_EXPERTS, "num_experts": 5, "moe_intermediate_size": 28}
_MULTIPLIERS = {
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.7,
    "embedding_multiplier": 3.0,
    "logits_scaling": 1.7,
}
_DENSE_BETWEEN = {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [3]}

_mixtral = family("mixtral", "MixtralConfig", {**WIDE, **_LOCAL})
_qwen2_moe = family("qwen2_moe", "Qwen2MoeConfig", {**NARROW, **_NAMED})
_qwen3_moe = family("qwen3_moe", "Qwen3MoeConfig", {**NARROW, **_NAMED})
_olmoe = family("olmoe", "OlmoeConfig", {**NARROW, **_EXPERTS, "num_experts": 5})
_granite = family("granitemoe", "GraniteMoeConfig", {**NARROW, **_LOCAL, **_MULTIPLIERS})
_granite_shared = family(
    "granitemoeshared", "GraniteMoeSharedConfig", {**NARROW, **_LOCAL, **_MULTIPLIERS}
)
_SHARED = {"shared_expert_intermediate_size": 36}

CASES: tuple[Case, ...] = (
    _mixtral("window", {"sliding_window": WINDOW, **rope()}),
    _mixtral("full-tied", {"head_dim": None, "num_experts_per_tok": 3, **TIED}),
    _qwen2_moe("shared", {**_SHARED, **rope()}),
    _qwen2_moe(
        "dense-between-windows",
        {
            **_SHARED,
            **_DENSE_BETWEEN,
            "qkv_bias": False,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 3,
        },
    ),
    _qwen3_moe("window", {"use_sliding_window": True, "sliding_window": WINDOW, **rope()}),
    _qwen3_moe(
        "dense-between", {**_DENSE_BETWEEN, "attention_bias": True, "norm_topk_prob": True}
    ),
    _olmoe("clipped", {"clip_qkv": 0.7, **rope()}),
    _olmoe("normalised-tied", {"norm_topk_prob": True, "attention_bias": True, **TIED}),
    _granite("tied", {**TIED, **rope()}),
    _granite("biases", {"attention_bias": True, "num_experts_per_tok": 3}),
    _granite_shared("shared", {"shared_intermediate_size": 36, **rope()}),
    _granite_shared("routed-only", {**TIED}),
)
