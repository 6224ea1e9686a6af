"""Dense models that differ from Llama in norms, wiring, positions or scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    yarn,
)

_FOUR_LAYERS = {"num_hidden_layers": 4}
_BIASES = {"attention_bias": True, "mlp_bias": True}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "model_type": "pixtral",
}
_LISTED = {"layer_types": ["sliding_attention", "full_attention", "full_attention"] * 2}
_LLLG = [*["sliding_attention"] * 3, "full_attention", "sliding_attention"]
_MULTIPLIERS = {
    "embedding_multiplier": 1.7,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.21,
    "logits_scaling": 1.3,
}
_GROWING = yarn(9, llama_4_scaling_beta=0.4, mscale=0.7, mscale_all_dim=1.3)
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_YARN_IN_FULL_LAYERS = {
    "rope_parameters": {
        "full_attention": {**_YARN, "rope_theta": 100.0, "attention_factor": 1.3},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    }
}
_ROPE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")
_PADDING = {"pad_token_id": 0}  # that of the class lies outside the small vocabulary

_gemma = family("gemma", "GemmaConfig", WIDE)
_granite = family("granite", "GraniteConfig", {**NARROW, **_MULTIPLIERS})
_hyperclovax = family("hyperclovax", "HyperCLOVAXConfig", {**WIDE, **_MULTIPLIERS})
_glm = family("glm", "GlmConfig", {**WIDE, **_PADDING})
_glm4 = family("glm4", "Glm4Config", {**WIDE, **_PADDING})
_helium = family("helium", "HeliumConfig", {**NARROW, "head_dim": 12})
_cwm = family("cwm", "CwmConfig", {**WIDE, "num_hidden_layers": 6, "sliding_window": WINDOW})
_arcee = family("arcee", "ArceeConfig", WIDE)
_nemotron = family(
    "nemotron", "NemotronConfig", {**COMMON, "num_key_value_heads": 2, "norm_eps": 2e-3}
)
_ministral = family("ministral", "MinistralConfig", {**WIDE, "sliding_window": WINDOW})
_ministral3 = family("ministral3", "Ministral3Config", {**WIDE, **_PADDING})
_seed_oss = family("seed_oss", "SeedOssConfig", WIDE)
_internlm3 = family("internlm3", "InternLM3Config", WIDE)
_iquestcoder = family("iquestcoder", "IQuestCoderConfig", WIDE)
_vaultgemma = family(
    "vaultgemma",
    "VaultGemmaConfig",
    {**WIDE, **_FOUR_LAYERS, "query_pre_attn_scalar": 20, "sliding_window": WINDOW},
)
_ernie4_5 = family("ernie4_5", "Ernie4_5Config", WIDE)
_smollm3 = family("smollm3", "SmolLM3Config", {**NARROW, **_PADDING, "num_hidden_layers": 5})
_olmo = family("olmo", "OlmoConfig", {**COMMON, "num_key_value_heads": 2, "eos_token_id": 2})
_olmo2 = family("olmo2", "Olmo2Config", {**NARROW, "eos_token_id": 2})
_olmo3 = family("olmo3", "Olmo3Config", {**NARROW, "num_hidden_layers": 5, "eos_token_id": 2})
_exaone4 = family("exaone4", "Exaone4Config", {**WIDE, "num_hidden_layers": 5})
_hunyuan = family("hunyuan_v1_dense", "HunYuanDenseV1Config", WIDE)


def _left_out(conf: str, config_class: str, *names: str, **knobs: Any) -> Case:
    """A model of which a config.json leaves out `names`, since they have their default values."""
    sizes = {"rms_norm_eps": 1e-5, **COMMON, **_PADDING, **knobs}
    sizes = {name: value for name, value in sizes.items() if name not in names}
    about = {"hub_lacks": (*names, *_ROPE_FIELDS, "tie_word_embeddings")}
    return Case(f"{conf}-defaults-left-out", conf, config_class, sizes, **about)


def _with_vision(model_type: str, text: Mapping[str, Any]) -> Case:
    """The text model inside a Mistral 3 with an image encoder."""
    tied = {name: value for name, value in text.items() if name in TIED}
    knobs = {"text_config": {**text, "model_type": model_type}, "vision_config": _VISION, **tied}
    model = "Mistral3ForConditionalGeneration"
    knobs["image_token_index"] = VOCAB_SIZE - 1
    return Case(f"{model_type}-multimodal", model_type, "Mistral3Config", knobs, model)


CASES: tuple[Case, ...] = (
    _gemma(
        "tied-biases", {"attention_bias": True, "hidden_act": "gelu"}, hub={"hidden_act": "gelu"}
    ),
    _gemma("untied-silu", {"hidden_act": "silu", "num_key_value_heads": 1, **rope(), **UNTIED}),
    _left_out(
        "gemma", "GemmaConfig", "head_dim", "hidden_act", "rms_norm_eps", num_key_value_heads=2
    ),
    _granite("multipliers", rope()),
    _granite("biases-tied", {**_BIASES, **TIED}),
    _left_out("granite", "GraniteConfig", *_MULTIPLIERS, "num_key_value_heads"),
    _hyperclovax("post-norms", {**_BIASES, **rope()}),
    _hyperclovax(
        "no-post-norms-tied", {"use_post_norm": False, "attention_multiplier": None, **TIED}
    ),
    _left_out("hyperclovax", "HyperCLOVAXConfig", *_MULTIPLIERS, "use_post_norm", "head_dim"),
    _glm("half-rotated", rope(partial_rotary_factor=0.5)),
    _glm("unbiased-tied", {"attention_bias": False, **rope(partial_rotary_factor=0.3), **TIED}),
    _left_out(
        "glm", "GlmConfig", "num_key_value_heads", "head_dim", "rms_norm_eps", "attention_bias"
    ),
    _glm4("half-rotated", rope(partial_rotary_factor=0.5)),
    _glm4("unbiased-tied", {"attention_bias": False, **rope("linear", factor=3.0), **TIED}),
    _left_out(
        "glm4", "Glm4Config", "num_key_value_heads", "head_dim", "rms_norm_eps", "attention_bias"
    ),
    _helium("biases", {**_BIASES, **rope()}),
    _helium("tied", TIED),
    _left_out(
        "helium",
        "HeliumConfig",
        "rms_norm_eps",
        "attention_bias",
        num_key_value_heads=2,
        head_dim=12,
    ),
    _cwm("scaled", {**rope("llama3", factor=8.0, **_LLAMA3), "mlp_bias": True}),
    _cwm("listed-tied", {**_LISTED, **TIED}, hub=_LISTED),
    _left_out(
        "cwm",
        "CwmConfig",
        "num_key_value_heads",
        "head_dim",
        "sliding_window",
        num_attention_heads=8,
        num_hidden_layers=5,
    ),
    _arcee("biases-yarn", {**_BIASES, **yarn(16)}),
    _arcee("tied", {"head_dim": None, **TIED}),
    _left_out("arcee", "ArceeConfig", "hidden_act", "num_key_value_heads"),
    _nemotron("biases", {**_BIASES, "head_dim": 20, **rope(partial_rotary_factor=0.5)}),
    _nemotron("linear-tied", {**rope("linear", factor=3.0, partial_rotary_factor=0.5), **TIED}),
    _ministral("windows", rope()),
    _ministral("listed-tied", {**_LISTED, "num_hidden_layers": 6, **TIED}, hub=_LISTED),
    _left_out(
        "ministral",
        "MinistralConfig",
        "num_key_value_heads",
        "rms_norm_eps",
        "sliding_window",
        num_attention_heads=8,
        head_dim=20,
    ),
    _ministral3("scaled-queries", _GROWING),
    _ministral3(
        "window-tied", {**yarn(6, llama_4_scaling_beta=0.2), "sliding_window": WINDOW, **TIED}
    ),
    _with_vision("ministral3", {**WIDE, **_GROWING, **UNTIED}),
    _with_vision("mistral", {**WIDE, "sliding_window": WINDOW, **TIED}),
    _seed_oss("biases", {"attention_out_bias": True, "mlp_bias": True, **rope()}),
    _seed_oss("qkv-biases-tied", TIED),
    _left_out(
        "seed_oss",
        "SeedOssConfig",
        "num_key_value_heads",
        "head_dim",
        "attention_bias",
        "attention_out_bias",
        "rms_norm_eps",
        num_attention_heads=8,
    ),
    _internlm3(
        "biases",
        {**_BIASES, **rope("dynamic", factor=3.0)},
        hub={"qkv_bias": True, "bias": True},
        hub_lacks=("attention_bias", "mlp_bias"),
    ),
    _left_out("internlm3", "InternLM3Config", "num_key_value_heads", "head_dim", "rms_norm_eps"),
    _iquestcoder("biases-tied", {**_BIASES, **rope(), **TIED}),
    _left_out(
        "iquestcoder",
        "IQuestCoderConfig",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        num_attention_heads=8,
    ),
    _vaultgemma(
        "softcaps",
        {
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            "attention_bias": True,
            **rope(),
        },
    ),
    _vaultgemma("default-caps-untied", UNTIED),
    _left_out(
        "vaultgemma",
        "VaultGemmaConfig",
        "head_dim",
        "hidden_activation",
        "rms_norm_eps",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "sliding_window",
        num_key_value_heads=4,
    ),
    _ernie4_5("biases-tied", {"use_bias": True, **rope()}),
    _ernie4_5("untied", UNTIED),
    _left_out(
        "ernie4_5", "Ernie4_5Config", "num_key_value_heads", "head_dim", "rms_norm_eps", "use_bias"
    ),
    _smollm3("unrotated-tied", rope()),
    _smollm3(
        "windows-biases-untied",
        {
            **_BIASES,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "no_rope_layers": [1, 0, 0, 1, 1],
            **UNTIED,
        },
    ),
    _left_out(
        "smollm3",
        "SmolLM3Config",
        "num_key_value_heads",
        "rms_norm_eps",
        "no_rope_layers",
        "no_rope_layer_interval",
        "use_sliding_window",
        num_hidden_layers=5,
    ),
    _olmo("clipped", {"clip_qkv": 0.7, **rope()}),
    _olmo("biases-tied", {"attention_bias": True, **TIED}),
    _left_out("olmo", "OlmoConfig", "num_key_value_heads", "clip_qkv", eos_token_id=2),
    _olmo2("biases", {"attention_bias": True, **rope()}),
    _olmo2("mqa-tied", {"num_key_value_heads": 1, **TIED}),
    _left_out("olmo2", "Olmo2Config", "num_key_value_heads", "rms_norm_eps", eos_token_id=2),
    _olmo3("windows-yarn", {"sliding_window": WINDOW, **_YARN_IN_FULL_LAYERS}),
    _olmo3(
        "listed-tied",
        {**_LISTED, "num_hidden_layers": 6, "sliding_window": WINDOW, **TIED},
        hub=_LISTED,
    ),
    _left_out(
        "olmo3",
        "Olmo3Config",
        "num_key_value_heads",
        "rms_norm_eps",
        "sliding_window",
        eos_token_id=2,
        num_hidden_layers=5,
    ),
    _exaone4(
        "windows",
        {"sliding_window": WINDOW, **rope("llama3", factor=8.0, **_LLAMA3)},
        hub={"sliding_window_pattern": "LLLG", "layer_types": _LLLG},
    ),
    _exaone4("full-tied", {"sliding_window": None, "layer_types": ["full_attention"] * 5, **TIED}),
    _left_out(
        "exaone4",
        "Exaone4Config",
        "rms_norm_eps",
        "sliding_window",
        "sliding_window_pattern",
        num_key_value_heads=2,
        num_hidden_layers=5,
    ),
    _hunyuan("alpha", {"attention_bias": True, **rope("dynamic", alpha=40.0, factor=1.0)}),
    _hunyuan("tied", TIED),
    _left_out(
        "hunyuan_v1_dense",
        "HunYuanDenseV1Config",
        "num_key_value_heads",
        "attention_bias",
        head_dim=20,
    ),
)
