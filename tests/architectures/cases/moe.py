"""Mixtures of experts."""

from __future__ import annotations

from cases.case import (
    COMMON,
    NARROW,
    TIED,
    UNTIED,
    VOCAB_SIZE,
    WIDE,
    WINDOW,
    Case,
    family,
    rope,
    rope_of_each_kind,
    yarn,
)

_EXPERTS = {"num_experts_per_tok": 2}
_LOCAL = {**_EXPERTS, "num_local_experts": 5}
_NAMED = {**_EXPERTS, "num_experts": 5}
_NARROW_EXPERTS = {**_NAMED, "moe_intermediate_size": 28}
_GROUPED = {
    **_EXPERTS,
    "moe_intermediate_size": 28,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
}
_MULTIPLIERS = {
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.7,
    "embedding_multiplier": 3.0,
    "logits_scaling": 1.7,
}
_SHARED = {"shared_expert_intermediate_size": 36}
_DENSE_BETWEEN = {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
_PLAIN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FOUR_WINDOWS = {"num_hidden_layers": 4, "sliding_window": WINDOW}
_WINDOWS_LAST = ["full_attention", "sliding_attention", "sliding_attention"]
_COHERE2 = {
    **COMMON,
    **_NAMED,
    **_PLAIN_IDS,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "layer_norm_eps": 2e-3,
    "logit_scale": 0.3,
    "sliding_window": WINDOW,
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
# transformers 5.23 keeps the short factors of this model in long texts, so there is no such row.
_LONGROPE = rope(
    "longrope",
    short_factor=[1.0 + 0.3 * n for n in range(6)],
    long_factor=[1.5 + 1.1 * n for n in range(6)],
    original_max_position_embeddings=32,
    short_mscale=1.3,
    long_mscale=1.6,
)
_CHUNKS = {
    "num_hidden_layers": 4,
    "intermediate_size_mlp": 36,
    "attention_chunk_size": WINDOW,
    "floor_scale": 5,
    "attn_scale": 0.6,
}
_DBRX = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 48,
    "n_heads": 4,
    "n_layers": 3,
    "max_seq_len": 64,
}
_DBRX_EXPERTS = {"ffn_hidden_size": 40, "moe_num_experts": 5, "moe_top_k": 2}
_DBRX_ATTENTION = {"kv_n_heads": 2, "rope_theta": 100.0}

_BASES = [0, 100.0, 300.0, 50.0, 700.0]
_LISTED = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]

_mixtral = family("mixtral", "MixtralConfig", {**WIDE, **_LOCAL})
_qwen2_moe = family("qwen2_moe", "Qwen2MoeConfig", {**NARROW, **_NARROW_EXPERTS, **_SHARED})
_qwen3_moe = family("qwen3_moe", "Qwen3MoeConfig", {**NARROW, **_NARROW_EXPERTS})
_olmoe = family("olmoe", "OlmoeConfig", {**NARROW, **_NAMED, **_PLAIN_IDS})
_flex_olmo = family("flex_olmo", "FlexOlmoConfig", {**NARROW, **_NAMED, **_PLAIN_IDS})
_granite = family("granitemoe", "GraniteMoeConfig", {**NARROW, **_LOCAL, **_MULTIPLIERS})
_granite_shared = family(
    "granitemoeshared", "GraniteMoeSharedConfig", {**NARROW, **_LOCAL, **_MULTIPLIERS}
)
_granite_swa = family(
    "granitemoe_swa",
    "GraniteMoeSWAConfig",
    {**NARROW, **_LOCAL, **_MULTIPLIERS, "num_hidden_layers": 5, "sliding_window": WINDOW},
)
_phimoe = family("phimoe", "PhimoeConfig", {**NARROW, **_LOCAL})
_dbrx = family("dbrx", "DbrxConfig", _DBRX)
_solar = family("solar_open", "SolarOpenConfig", {**WIDE, **_GROUPED})
_exaone = family("exaone_moe", "ExaoneMoeConfig", {**WIDE, **_NARROW_EXPERTS, **_FOUR_WINDOWS})
_hy_v3 = family("hy_v3", "HYV3Config", {**WIDE, **_NARROW_EXPERTS})
_flint = family("flint", "FlintConfig", {**WIDE, **_NARROW_EXPERTS, **_SHARED, **_FOUR_WINDOWS})
_afmoe = family("afmoe", "AfmoeConfig", {**WIDE, **_NARROW_EXPERTS, **_FOUR_WINDOWS})
_mellum = family("mellum", "MellumConfig", {**WIDE, **_NARROW_EXPERTS, "sliding_window": WINDOW})
_cohere2 = family("cohere2_moe", "Cohere2MoeConfig", _COHERE2)
_gpt_oss = family("gpt_oss", "GptOssConfig", {**WIDE, **_LOCAL, "sliding_window": WINDOW})
_llama4 = family("llama4_text", "Llama4TextConfig", {**WIDE, **_LOCAL, **_PLAIN_IDS, **_CHUNKS})
_aria = family("aria_text", "AriaTextConfig", {**NARROW, "moe_num_experts": 5, "moe_topk": 2})
_ernie = family(
    "ernie4_5_moe",
    "Ernie4_5_MoeConfig",
    {**NARROW, "moe_num_experts": 5, "moe_k": 2, "moe_intermediate_size": 28},
)
_hunyuan = family(
    "hunyuan_v1_moe",
    "HunYuanMoEV1Config",
    {**WIDE, **_PLAIN_IDS, "num_experts": 5, "moe_topk": 2},
)
_minimax = family("minimax_m2", "MiniMaxM2Config", {**WIDE, **_LOCAL, **_PLAIN_IDS})
_glm4 = family("glm4_moe", "Glm4MoeConfig", {**WIDE, **_GROUPED})
_dots1 = family("dots1", "Dots1Config", {**WIDE, **_GROUPED})

CASES: tuple[Case, ...] = (
    _mixtral("window", {"sliding_window": WINDOW, **rope()}),
    _mixtral("full-tied", {"head_dim": None, "num_experts_per_tok": 3, **TIED}),
    _qwen2_moe("shared", rope()),
    _qwen2_moe(
        "dense-between-windows",
        {
            **_DENSE_BETWEEN,
            "qkv_bias": False,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 3,
        },
    ),
    _qwen3_moe("window", {"use_sliding_window": True, "sliding_window": WINDOW, **rope()}),
    _qwen3_moe("dense-between", {**_DENSE_BETWEEN, "attention_bias": True, "norm_topk_prob": True}),
    _olmoe("clipped", {"clip_qkv": 0.7, **rope()}),
    _olmoe("normalised-tied", {"norm_topk_prob": True, "attention_bias": True, **TIED}),
    _flex_olmo("plain", rope()),
    _flex_olmo("normalised-biases", {"norm_topk_prob": True, "attention_bias": True}),
    _granite("tied", {**TIED, **rope()}),
    _granite("biases", {"attention_bias": True, "num_experts_per_tok": 3}),
    _granite_shared("shared", {"shared_intermediate_size": 36, **rope()}),
    _granite_shared("routed-only", TIED),
    _granite_swa(
        "bases-shared",
        {
            "layer_rope_theta": _BASES,
            "shared_intermediate_size": 36,
            "attention_bias": True,
            **rope(),
        },
        hub={"layer_rope_theta": _BASES},
    ),
    _granite_swa(
        "listed-tied",
        {"layer_types": _LISTED, **TIED, **rope()},
        hub={"layer_types": _LISTED},
        hub_lacks=("layer_rope_theta",),
    ),
    _phimoe(
        "window-biases",
        {"sliding_window": WINDOW, "attention_bias": True, "lm_head_bias": True, **rope()},
    ),
    _phimoe("longrope-short-text", _LONGROPE),
    _phimoe("wide-jitter", {"router_jitter_noise": 0.2, **TIED}),
    _dbrx(
        "clipped",
        {
            "attn_config": {**_DBRX_ATTENTION, "clip_qkv": 0.7},
            "ffn_config": _DBRX_EXPERTS,
            **rope(),
        },
    ),
    _dbrx(
        "theta-gelu",
        {
            "attn_config": {**_DBRX_ATTENTION, "rope_theta": 10000.0, "clip_qkv": 2.0},
            "ffn_config": {**_DBRX_EXPERTS, "ffn_act_fn": {"name": "gelu"}},
        },
    ),
    _gpt_oss("windows", {"swiglu_limit": 0.8, **yarn(16, truncate=False)}),
    _gpt_oss(
        "no-biases-tied",
        {"attention_bias": False, **TIED, **rope()},
        hub={"rope_scaling": {"rope_type": "default"}},  # without a word it is YaRN
    ),
    _llama4("chunks-scaled", rope("llama3", factor=8.0, **_LLAMA3)),
    _llama4(
        "dense-between-unnormed",
        {
            "num_hidden_layers": 6,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "attention_bias": True,
            **TIED,
        },
    ),
    _aria("shared", {**rope(), **UNTIED}, model_class="AriaTextForCausalLM"),
    _aria(
        "biases",
        {"moe_num_shared_experts": 1, "attention_bias": True, "mlp_bias": True, **TIED},
        model_class="AriaTextForCausalLM",
    ),
    _ernie("biases", {"use_bias": True, **rope()}),
    _ernie(
        "dense-between-untied",
        {
            "num_hidden_layers": 6,
            "moe_layer_interval": 2,
            "moe_layer_end_index": 4,
            "moe_norm_min": 0.7,
            "moe_num_shared_experts": 1,
            **UNTIED,
        },
    ),
    _ernie("routed-only", {"moe_num_shared_experts": 0}),
    _hunyuan("shared", rope()),
    _hunyuan("alpha-rope", rope("dynamic", alpha=8.0, factor=1.0)),
    _hunyuan("biases-tied", {"attention_bias": True, **TIED}, hub={"moe_topk": [2, 2, 2]}),
    _minimax("partial-rope", rope(partial_rotary_factor=0.5), hub={"rotary_dim": 10}),
    _minimax("full-rope-tied", TIED),
    _glm4("qk-norms", {"use_qk_norm": True, **rope(partial_rotary_factor=0.5)}),
    _glm4(
        "biases-unnormalised",
        {
            "attention_bias": True,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 2,
            **TIED,
        },
    ),
    _dots1(
        "windows",
        {"sliding_window": WINDOW, "max_window_layers": 2, "attention_bias": True, **rope()},
    ),
    _dots1("normalised-tied", {"norm_topk_prob": True, "first_k_dense_replace": 0, **TIED}),
    _solar("groups", rope()),
    _solar("biases-tied", {"attention_bias": True, "norm_topk_prob": False, "n_group": 2, **TIED}),
    _exaone("windows", rope()),
    _exaone(
        "groups-tied",
        {
            "num_experts": 6,
            "n_group": 3,
            "topk_group": 2,
            "norm_topk_prob": False,
            "sliding_window_pattern": 2,
            "first_k_dense_replace": 2,
            "num_shared_experts": 2,
            "routed_scaling_factor": 1.3,
            **TIED,
        },
    ),
    _hy_v3("shared", rope()),
    _hy_v3(
        "biases-tied",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "num_shared_experts": 2,
            "router_scaling_factor": 1.3,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            **TIED,
        },
    ),
    _flint("windows", {"num_hidden_layers": 6, **rope()}),
    _flint(
        "biases-tied",
        {
            "mlp_only_layers": [1],
            "attention_bias": True,
            "norm_topk_prob": False,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            **TIED,
        },
        hub={"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    _afmoe("windows", {"mup_enabled": True, "route_scale": 1.7, **rope()}),
    _afmoe(
        "biases-tied",
        {
            "attention_bias": True,
            "num_dense_layers": 2,
            "num_shared_experts": 1,
            "global_attn_every_n_layers": 2,
            **TIED,
        },
    ),
    _mellum(
        "windows",
        {"layer_types": _WINDOWS_LAST, **rope_of_each_kind()},
        hub={"layer_types": _WINDOWS_LAST, **rope_of_each_kind()},
    ),
    _mellum(
        "dense-between-biases",
        {
            "mlp_layer_types": ["dense", "sparse", "dense"],
            "attention_bias": True,
            "norm_topk_prob": False,
            **TIED,
        },
    ),
    _cohere2("routed-only", rope()),
    _cohere2(
        "shared-averaged-sigmoid",
        {
            "expert_selection_fn": "sigmoid",
            "norm_topk_prob": False,
            "num_shared_experts": 2,
            "mlp_layer_types": ["dense", "sparse", "sparse", "dense", "sparse"],
            **UNTIED,
        },
    ),
    _cohere2(
        "shared-summed-rms-norms",
        {
            "expert_selection_fn": "sigmoid",
            "attention_bias": True,
            "rms_norm_eps": 2e-3,
            "num_shared_experts": 1,
            "shared_expert_combination_strategy": "sum",
            "first_k_dense_replace": 2,
            "prefix_dense_sliding_window_pattern": 2,
            "prefix_dense_intermediate_size": 36,
        },
        hub={"first_k_dense_replace": 2},
    ),
)
