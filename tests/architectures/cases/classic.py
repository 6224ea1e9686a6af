"""The decoders of before Llama: LayerNorm, plain MLPs, learned positions, fused tensors."""

from __future__ import annotations

from cases.case import COMMON, TIED, UNTIED, VOCAB_SIZE, WINDOW, Case, family, rope

_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 56,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "layer_norm_epsilon": 2e-3,
}
_NEOX = {**COMMON, "hidden_size": 64, "layer_norm_eps": 2e-3}
_NEOX_NAMES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}

_OPT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "ffn_dim": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 48,
}
_XGLM = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 48,
    "ffn_dim": 40,
    "num_layers": 3,
    "attention_heads": 4,
    "max_position_embeddings": 64,
}
_CTRL = {**{k: v for k, v in _GPT2.items() if k != "layer_norm_epsilon"}, "dff": 40}
_GPT_NEO = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
    "window_size": WINDOW,
    "max_position_embeddings": 64,
    "layer_norm_epsilon": 2e-3,
}
_BIOGPT = {**COMMON, "layer_norm_eps": 2e-3}  # which has no effect
_PHI = {**COMMON, "num_key_value_heads": 2, "layer_norm_eps": 2e-3, "hidden_size": 64}
_BLOOM = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "n_layer": 3,
    "n_head": 6,
    "layer_norm_epsilon": 2e-3,
}
_MPT = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 48,
    "n_layers": 3,
    "n_heads": 6,
    "max_seq_len": 64,
    "layer_norm_epsilon": 2e-3,
}
_FALCON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "ffn_hidden_size": 40,
    "layer_norm_epsilon": 2e-3,
}
_NEW_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2}
_STARCODER2 = {**COMMON, "num_key_value_heads": 2, "norm_epsilon": 2e-3}

_gpt2 = family("gpt2", "GPT2Config", _GPT2)
_neox = family("gpt_neox", "GPTNeoXConfig", _NEOX)
_openai_gpt = family("openai_gpt", "OpenAIGPTConfig", _GPT2)
_opt = family("opt", "OPTConfig", _OPT)
_biogpt = family("biogpt", "BioGptConfig", _BIOGPT)
_xglm = family("xglm", "XGLMConfig", _XGLM)
_ctrl = family("ctrl", "CTRLConfig", _CTRL)
_gpt_neo = family("gpt_neo", "GPTNeoConfig", _GPT_NEO)
_bigcode = family("gpt_bigcode", "GPTBigCodeConfig", _GPT2)
_gptj = family("gptj", "GPTJConfig", {**_GPT2, "rotary_dim": 6})
_japanese = family(
    "gpt_neox_japanese", "GPTNeoXJapaneseConfig", {**_NEOX, "intermediate_multiple_size": 2}
)
_phi = family("phi", "PhiConfig", _PHI)
_starcoder2 = family("starcoder2", "Starcoder2Config", _STARCODER2)
_bloom = family("bloom", "BloomConfig", _BLOOM)
_mpt = family("mpt", "MptConfig", _MPT)
_falcon = family("falcon", "FalconConfig", _FALCON)
_persimmon = family("persimmon", "PersimmonConfig", _NEOX)

CASES: tuple[Case, ...] = (
    _gpt2("narrow-mlp", {"n_inner": 40}),
    _gpt2(
        "published-names",
        {},
        extra_tensors={"h.{i}.attn.bias": (1, 1, 64, 64), "h.{i}.attn.masked_bias": ()},
        dropped_prefix="transformer.",
    ),
    _gpt2(
        "unscaled-untied-relu",
        {"scale_attn_weights": False, "activation_function": "relu", **UNTIED},
        dropped_prefix="transformer.",
    ),
    _neox(
        "parallel",
        {"hidden_act": "gelu_fast"},
        hub_names=_NEOX_NAMES,
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
            **TIED,
            **rope(partial_rotary_factor=0.5),
        },
        hub_names=_NEOX_NAMES,
    ),
    _openai_gpt("plain", {}, dropped_prefix="transformer."),
    _openai_gpt("untied-relu", {"afn": "relu", **UNTIED}),
    _opt("usual", {}),
    _opt("without-biases-untied", {"enable_bias": False, "activation_function": "gelu", **UNTIED}),
    _opt("projections-post-norm", {"do_layer_norm_before": False, "word_embed_proj_dim": 28}),
    _opt("projections", {"word_embed_proj_dim": 28, "layer_norm_elementwise_affine": False}),
    _opt("without-a-last-norm", {"_remove_final_layer_norm": True}, dropped_prefix="model."),
    _biogpt("usual", {}),
    _biogpt("unscaled-untied", {"scale_embedding": False, "hidden_act": "relu", **UNTIED}),
    _xglm("usual", {}),
    _xglm("unscaled-untied", {"scale_embedding": False, **UNTIED}),
    _ctrl("usual", {}),
    _ctrl("untied-eps", {"layer_norm_epsilon": 2e-3, **UNTIED}),
    _gpt_neo("windows", {}, hub_lacks=("attention_layers",)),
    _gpt_neo(
        "uneven-windows-untied",
        {"attention_types": [[["local"], 1], [["global", "local", "local"], 1]], **UNTIED},
    ),
    _bigcode("multi-query", {}),
    _bigcode("multi-head-unscaled", {"multi_query": False, "scale_attn_weights": False, **UNTIED}),
    _gptj(
        "usual",
        {},
        extra_tensors={
            "transformer.h.{i}.attn.bias": (1, 1, 64, 64),
            "transformer.h.{i}.attn.masked_bias": (),
        },
    ),
    _gptj("tied-narrow", {"n_inner": 40, **TIED}),
    _japanese("tied", rope(partial_rotary_factor=0.5), hub_names=_NEOX_NAMES),
    _japanese("untied-relu", {"hidden_act": "relu", **UNTIED}, hub_names=_NEOX_NAMES),
    _phi("usual", {}),
    _phi("qk-norm-tied", {"qk_layernorm": True, **TIED, **rope(partial_rotary_factor=0.25)}),
    _starcoder2("window", {"sliding_window": WINDOW}),
    _starcoder2("full-without-biases-untied", {"use_bias": False, **UNTIED}),
    _persimmon("usual", {"hidden_act": "relu2"}),
    _persimmon("plain-tied", {"qk_layernorm": False, **TIED}),
    _bloom("usual", {}, dropped_prefix="transformer."),
    _bloom("normed-residual-untied", {"apply_residual_connection_post_layernorm": True, **UNTIED}),
    _mpt("usual", {}),
    _mpt("clipped", {"attn_config": {"clip_qkv": 0.6, "softmax_scale": 0.4}}),
    _falcon(
        "rw",
        {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
        attention="sdpa",  # eager adds the ALiBi biases twice
    ),
    _falcon("7b", rope()),
    _falcon("40b", {**_NEW_FALCON, **UNTIED}),
    _falcon("11b", {**_NEW_FALCON, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": None}),
)
