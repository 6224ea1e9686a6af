"""The decoders of before Llama: LayerNorm, plain MLPs, learned positions, fused tensors."""

from __future__ import annotations

from cases.case import COMMON, TIED, UNTIED, VOCAB_SIZE, Case, family, rope

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

_gpt2 = family("gpt2", "GPT2Config", _GPT2)
_neox = family("gpt_neox", "GPTNeoXConfig", _NEOX)

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
)
