"""Latent attention (MLA): DeepSeek and its kin."""

from __future__ import annotations

from typing import Any

from cases.case import COMMON, TIED, UNTIED, Case, family, longrope, rope, yarn

_LATENT = {
    **COMMON,
    "num_key_value_heads": 4,
    "rms_norm_eps": 2e-3,
    "q_lora_rank": 20,
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
}
_MIXTURE = {
    "moe_intermediate_size": 28,
    "num_experts_per_tok": 2,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
}
_WHOLE_QUERIES = {"q_lora_rank": None}
_HALF = {"rope_interleave": False}
_BIASES = {"attention_bias": True}
_MSCALES = {"mscale": 0.7, "mscale_all_dim": 1.3}

_GREEDY = {"topk_method": "greedy"}
_GROUPS = {"topk_method": "group_limited_greedy"}
_SCALES = {"scale_emb": 3.0, "scale_depth": 0.9, "dim_model_base": 20}
_QUERY_SCALE = {"llama_4_scaling_beta": 0.6}

_youtu = family("youtu", "YoutuConfig", _LATENT)
_minicpm3 = family("minicpm3", "MiniCPM3Config", {**_LATENT, **_SCALES})
_deepseek_v2 = family("deepseek_v2", "DeepseekV2Config", {**_LATENT, **_MIXTURE})
_deepseek_v3 = family("deepseek_v3", "DeepseekV3Config", {**_LATENT, **_MIXTURE})
_glm4_lite = family("glm4_moe_lite", "Glm4MoeLiteConfig", {**_LATENT, **_MIXTURE})
_mistral4 = family("mistral4", "Mistral4Config", {**_LATENT, **_MIXTURE})
_axk1 = family("axk1", "AXK1Config", {**_LATENT, **_MIXTURE})
_DEFAULTS = ("q_lora_rank", "n_shared_experts", "n_group", "topk_group", "routed_scaling_factor")


def _left_out(conf: str, config_class: str, *names: str, **knobs: Any) -> Case:
    """A model of which a config.json leaves out `names`, since they have their default values."""
    sizes = {**_LATENT, **_MIXTURE, **knobs}
    sizes = {name: value for name, value in sizes.items() if name not in names}
    about = {"hub_lacks": (*names, "tie_word_embeddings", "norm_topk_prob", "attention_bias")}
    return Case(f"{conf}-defaults-left-out", conf, config_class, sizes, **about)


CASES: tuple[Case, ...] = (
    _youtu("tied", {**_WHOLE_QUERIES, **TIED, **rope()}),
    _youtu("yarn-biases", {**_BIASES, **_HALF, **UNTIED, **yarn(16, mscale_all_dim=1.3)}),
    _minicpm3("longrope-long-text-tied", {**TIED, **longrope(16, 3)}, length_dependent=True),
    _minicpm3(
        "whole-queries-biases",
        {**_WHOLE_QUERIES, **_BIASES, "mlp_bias": True, "v_head_dim": None, **UNTIED, **rope()},
        hub_lacks=("v_head_dim",),
    ),
    _left_out(
        "deepseek_v2",
        "DeepseekV2Config",
        *_DEFAULTS,
        "first_k_dense_replace",
        "topk_method",
    ),
    _deepseek_v2("groups-yarn", {**_GROUPS, **yarn(16, **_MSCALES)}),
    _deepseek_v2(
        "greedy-whole-queries-biases-tied",
        {**_GREEDY, **_WHOLE_QUERIES, **_BIASES, "mlp_bias": True, **TIED, **rope()},
    ),
    _deepseek_v3("groups-yarn", yarn(16, **_MSCALES)),
    _deepseek_v3(
        "whole-queries-biases-tied",
        {
            **_WHOLE_QUERIES,
            **_BIASES,
            **_HALF,
            **TIED,
            "norm_topk_prob": False,
            "first_k_dense_replace": 2,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    _left_out(
        "deepseek_v3",
        "DeepseekV3Config",
        *_DEFAULTS,
        "first_k_dense_replace",
        num_hidden_layers=4,
        n_routed_experts=16,
        num_experts_per_tok=5,
    ),
    _glm4_lite("groups", rope()),
    _glm4_lite(
        "dense-between-biases-tied",
        {
            **_BIASES,
            **_HALF,
            **TIED,
            "norm_topk_prob": False,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
    ),
    _left_out("glm4_moe_lite", "Glm4MoeLiteConfig", *_DEFAULTS, "first_k_dense_replace"),
    _mistral4(
        "groups-scaled-queries",
        yarn(5, **_MSCALES, **_QUERY_SCALE),
        model_class="Mistral4ForCausalLM",
    ),
    _mistral4(
        "whole-queries-biases-tied",
        {
            **_WHOLE_QUERIES,
            **_BIASES,
            **_HALF,
            **TIED,
            "norm_topk_prob": False,
            **yarn(16, **_QUERY_SCALE),
        },
        model_class="Mistral4ForCausalLM",
    ),
    _axk1("groups-yarn", yarn(16, **_MSCALES)),
    _axk1(
        "dense-between-biases-tied",
        {
            **_BIASES,
            **_HALF,
            **TIED,
            "norm_topk_prob": False,
            "mlp_layer_types": ["dense", "sparse", "dense"],
        },
    ),
    _left_out("axk1", "AXK1Config", *_DEFAULTS, "first_k_dense_replace", n_routed_experts=16),
    _left_out(
        "minicpm3", "MiniCPM3Config", "q_lora_rank", "scale_emb", "scale_depth", "dim_model_base"
    ),
)
