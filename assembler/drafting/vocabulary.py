"""The field's words: what tensors are called, and what the fields of config.json are called.

Every rule here is about words and shapes; none is about one architecture. A role is what a module
does, named as in the model language (`attn.qkv`, `mlp.gate_up`, `post_attn_norm`).
"""

from __future__ import annotations

import re

_ATTENTION = r"(^|[._])(\w*attn|\w*attention)\b"


def _role(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


# Of matrices (and their biases) inside a layer, tried in this order on the module's name: those in
# its attention, then those of an MLP, of experts or of a shared expert.
ATTENTION_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, _role(rf"(^|[._])({words})(_?proj|_?lin|_?layer)?$"))
    for role, words in (
        ("q_a", "q_a|q_down|wq_a"),
        ("q_b", "q_b|q_up|wq_b"),
        ("kv_a", "kv_a_proj_with_mqa|kv_a|kv_down|wkv_a"),
        ("kv_b", "kv_b|kv_up|wkv_b"),
        ("qkv", "qkv|query_key_value|c_attn|wqkv|in|attn_qkv"),
        ("q", "q|query|wq"),
        ("k", "k|key|wk"),
        ("v", "v|value|wv"),
        ("gate.proj", "gate|g|output_gate"),
        ("o", "o|out|dense|c|wo|output.dense|output"),
    )
)
FEED_FORWARD_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, _role(rf"(^|[._])({words})(_?proj|_?linear|_?lin)?$"))
    for role, words in (
        ("gate_up", "gate_up|gate_and_up|input|w_in|wi|gateup|w13|w12"),
        ("gate", "gate|w1|wi_0|gate_layer"),
        ("up", "up|w3|v1|wi_1|c_fc|fc1|fc_in|dense_h_to_4h|0|lin1|dense_in"),
        ("down", "down|w2|wo|output|w_out|c|fc2|fc_out|dense_4h_to_h|2|lin2|dense_out"),
    )
)
IN_ATTENTION = _role(_ATTENTION + r"\.")
IN_EXPERTS = _role(r"(^|[._])experts?(\.|$|_)|\.mlp\.(w1|v1|w2)$")
SHARED = _role(r"(^|[._])shared_?(experts?|mlp)")
SHARED_GATE = _role(r"shared_?expert_?gate$|shared_gate$")
ROUTER = _role(r"(^|[._])(router|gate|wg|router\.layer|gate\.wg|router\.gate|moe\.layer)$")
SELECTION_BIAS = _role(r"(correction|expert|selection|routing|score)\w*_bias$")
SINKS = _role(r"(^|[._])(\w*sinks?|softmax_offset)$")
Q_NORM = _role(r"(^|[._])(q|query)_?(layer)?_?(norm|ln)s?(\.norms\.\{e\})?$")
K_NORM = _role(r"(^|[._])(k|key)_?(layer)?_?(norm|ln)s?(\.norms\.\{e\})?$")
LATENT_NORMS = (
    ("attn.q_a_norm", _role(r"q_a_\w*norm$")),
    ("attn.kv_a_norm", _role(r"kv_a_\w*norm$")),
)
OUT_NORM = _role(_ATTENTION + r"\.\w*(sub|inner|out)\w*(norm|ln)$")
INNER_NORM = _role(r"(mlp|ffn|feed_?forward)\.\w*(sub|inner|ffn|mid)\w*(norm|ln)$|^ffn_layernorm$")
ACTIVATION = _role(r"(^|[._])act(_fn|ivation)?\.(\w+)$")

# Norms of a layer, by where their name says they stand; tried in this order.
NORM_PLACES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("after_mlp", _role(r"post_?(mlp|feed_?forward|ffn?w?|moe)|post_norm_?2|(mlp|ffn)_post")),
    ("after_attn", _role(r"post_?(self_?attn|attn)_|post_norm_?1|attn_post")),
    (
        "before_mlp",
        _role(r"pre_?(mlp|feed_?forward|ffn?w?|moe)|(^|[._])(mlp|ffn|ff|feed_?forward)_"),
    ),
    ("between", _role(r"post_attention")),
    ("before_attn", _role(r"input_|pre_?(self_?)?att|(^|[._])(self_)?(attn|attention)_|ln_attn")),
    ("before_mlp", _role(r"ln_mlp|(ln|norm|layernorm)_?2$|^final_layer_?norm")),
    ("before_attn", _role(r"(ln|norm|layernorm)_?1$|^(layer_?norm|norm|ln)$")),
)

# Of tensors outside of the layers, tried in this order.
OUTSIDE_ROLES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("embed_norm", _role(r"(word_)?embed\w*_?(layer)?norm$|embedding_?norm$")),
    ("positions", _role(r"(^|[._])(wpe|embed_positions|positions?_embed\w*|position_embeddings)$")),
    ("project_in", _role(r"project_in$")),
    ("project_out", _role(r"project_out$")),
    ("lm_head", _role(r"(^|[._])(lm_head|embed_out|output_projection|output|head)$")),
    ("norm", _role(r"(^|[._])((final_?)?(layer_?)?norm(_f)?|ln_f|final_layernorm|ln_out)$")),
    ("embed", _role(r"(^|[._])(wte|w|embed_in|\w*embed(ding)?s?|embed_tokens|tok\w*)$")),
)

# Fields of config.json that say one thing by several names.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("hidden_size", "n_embd", "d_model", "n_embed", "model_dim", "dim"),
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    (
        "num_key_value_heads",
        "num_kv_heads",
        "n_head_kv",
        "n_kv_heads",
        "num_attention_groups",
        "attn_config.kv_n_heads",
        "multi_query_group_num",
    ),
    ("head_dim", "kv_channels", "attention_head_dim", "d_head"),
    (
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "ffn_hidden_size",
        "d_ff",
        "dff",
        "ffn_config.ffn_hidden_size",
    ),
    (
        "hidden_act",
        "hidden_activation",
        "activation_function",
        "activation",
        "afn",
        "ffn_act_fn.name",
    ),
    (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_eps",
        "norm_epsilon",
        "rms_eps",
        "layernorm_epsilon",
    ),
    (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "max_sequence_length",
        "n_ctx",
    ),
    (
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
        "ffn_config.moe_num_experts",
    ),
    ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "ffn_config.moe_top_k", "top_k"),
    ("moe_intermediate_size", "expert_intermediate_size", "moe_ffn_hidden_size"),
    ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    ("routed_scaling_factor", "router_scaling_factor", "route_scale"),
    ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
    ("attention_bias", "qkv_bias", "use_qkv_bias", "use_bias", "enable_bias", "bias"),
    ("sliding_window", "window_size", "attention_window"),
    ("logit_scale", "logits_scaling", "logits_multiplier"),
    ("embedding_multiplier", "scale_emb", "embedding_scale"),
    ("qk_layernorm", "use_qk_norm", "qk_norm"),
    ("shared_expert_intermediate_size", "shared_intermediate_size"),
    ("clip_qkv", "attn_config.clip_qkv"),
)

# Fields that say nothing about what the model computes.
SILENT = _role(
    r"(_token(_id|_index)?$|_token_ids?$|dropout|_pdrop$|^initializer|^transformers_version$|dtype$"
    r"|^architectures$|^model_type$|^auto_map$|use_cache$|^output_|^return_dict$|aux_loss|^summary_"
    r"|_coef$|^task_specific|^id2label$|^label2id$|^pretraining_tp$|^_name_or_path$|^layerdrop$"
    r"|^is_(encoder_)?decoder$|jitter|^problem_type$|^chunk_size_feed|quantization_config|_init_"
    r"|^num_nextn_predict_layers$|^_attn_implementation|_from_|^upcast|^slow_but_exact|^reorder"
    r"|^gradient_checkpointing|_std$|^mtp_|z_loss|^tokenizer_class$|^ep_size$|_loss_|_layerdrop$)"
)


def synonyms_of(field: str) -> tuple[str, ...]:
    """The names that mean what `field` means, itself first."""
    for names in SYNONYMS:
        if field in names:
            return (field, *(name for name in names if name != field))
    return (field,)
