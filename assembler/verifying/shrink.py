"""A config made small: few layers, narrow, a short vocabulary; what the model *is* stays.

Fields are known by the names that configs give them, not by architecture. Layers are kept from the
first on until every kind that a list names has been seen. Sizes are odd ones, so that two which
merely happen to be equal are told apart, and eps is large enough to matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADS = 4
HEAD_DIM = 16
_LAYERS = 3
_WINDOW = 7
_MOST_LAYERS = 12
_EPS = 2e-3

# Names of a size in configs -> what it becomes, where the config has a number there.
_SIZES: Mapping[int, tuple[str, ...]] = {
    HEADS * HEAD_DIM: (
        "hidden_size",
        "n_embd",
        "d_model",
        "dim",
        "embed_dim",
        "word_embed_proj_dim",
    ),
    HEADS: ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    40: ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "inner_dim", "dff", "d_ff"),
    28: ("moe_intermediate_size", "expert_ffn_hidden_size", "expert_dim", "ffn_hidden_dim"),
    44: ("shared_expert_intermediate_size", "shared_intermediate_size", "intermediate_size_mlp"),
    101: ("vocab_size",),
    24: ("q_lora_rank",),
    20: ("kv_lora_rank",),
    10: ("qk_nope_head_dim", "v_head_dim"),
    8: ("qk_rope_head_dim",),
    _WINDOW: ("attention_chunk_size",),
}
# The same, of which a smaller value is left as it is.
_AT_MOST: Mapping[int, tuple[str, ...]] = {
    128: (
        *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
        *("n_ctx", "seq_length"),
    ),
    8: ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    2: ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "n_shared_experts"),
    1: ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"),
}
# Names that some types leave null by default and cannot do without.
_NEEDED: Mapping[str, int] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "kv_n_heads")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EXPERT_GROUPS = {"n_group": 4, "topk_group": 2}
_SPECIAL_TOKENS = ("_token_id", "_token_index")
_MULTIPLIERS = ("_multiplier", "logits_scaling", "logit_scale", "routed_scaling_factor")
_LABELS = ("id2label", "label2id")  # of classifiers, by number


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a text model's config, complete (`to_dict`), with small sizes."""
    fields = _sized(config)
    old = _first(config, _LAYER_COUNTS)
    if old is not None:
        fields = _fewer_layers(fields, int(old))
    return fields


def enlivened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Multipliers that are 1 by default, as another number: one that is ignored then shows."""
    names = (n for n, v in fields.items() if n.endswith(_MULTIPLIERS) and v == 1.0)
    return {name: 1.5 + 0.25 * number for number, name in enumerate(sorted(names))}


def _sized(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with small sizes, also in what is nested (attn_config, ffn_config)."""
    fields = {
        key: _sized(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if isinstance(key, str) and key not in _LABELS
    }
    for size, names in _SIZES.items():
        for name in names:
            if _is_size(fields.get(name)):
                fields[name] = size
    for size, names in _AT_MOST.items():
        for name in names:
            if _is_size(fields.get(name)):
                fields[name] = min(size, fields[name])
    for name in _NEEDED:
        if name in fields and fields[name] is None:
            fields[name] = _NEEDED[name]
    for name, size in _EXPERT_GROUPS.items():
        if _is_size(fields.get(name)) and fields[name] > 1:
            fields[name] = size
    for name in fields:
        if "eps" in name and isinstance(fields[name], float) and fields[name] < _EPS:
            fields[name] = _EPS
        elif "window" in name and "layers" not in name and _is_size(fields[name]):
            fields[name] = _WINDOW
        elif name.endswith(_SPECIAL_TOKENS) and isinstance(fields[name], int):
            fields[name] = min(fields[name], 100)
    _shrink_heads(fields, config)
    _shrink_rope(fields)
    return fields


def _shrink_heads(fields: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Key/value heads in the same way fewer than query heads; a head as wide as usual, or wider."""
    heads = _first(config, _SIZES_OF_HEADS)
    for name in _KV_HEADS:
        old = config.get(name)
        if _is_size(old):
            fields[name] = 1 if old == 1 else HEADS if old == heads else 2
        elif name in fields and old is None:  # Nemotron's class cannot do without
            fields[name] = 2
    hidden, dim = _first(config, ("hidden_size", "n_embd", "d_model")), config.get("head_dim")
    if "head_dim" in fields and dim is None:
        fields["head_dim"] = HEAD_DIM
    if _is_size(dim):
        usual = heads is not None and hidden is not None and dim * heads == hidden
        fields["head_dim"] = HEAD_DIM if usual else HEAD_DIM + 8
    rope_dim = config.get("qk_rope_head_dim")
    if _is_size(rope_dim) and rope_dim == config.get("qk_nope_head_dim"):
        fields["qk_nope_head_dim"] = fields["qk_rope_head_dim"]
    if _is_size(rope_dim) and "head_dim" in config:
        fields["head_dim"] = int(fields["qk_rope_head_dim"] * ((dim or rope_dim) / rope_dim))
    if _is_size(config.get("qk_head_dim")) and "qk_nope_head_dim" in fields:
        fields["qk_head_dim"] = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
    if _is_size(fields.get("rotary_dim")):  # in dimensions of a head
        fields["rotary_dim"] = HEAD_DIM // 2 + 2


_SIZES_OF_HEADS = _SIZES[HEADS]


def _shrink_rope(fields: dict[str, Any]) -> None:
    """Pre-training lengths below the new longest text; a factor for each of fewer frequencies."""
    length = "original_max_position_embeddings"
    if _is_size(fields.get(length)):
        fields[length] = min(32, fields[length])
    for name in ("short_factor", "long_factor"):
        if isinstance(fields.get(name), list):
            share = fields.get("partial_rotary_factor") or 1.0
            count = int(HEAD_DIM * share) // 2
            fields[name] = [float(f) for f in fields[name][:: max(1, len(fields[name]) // count)]]
            fields[name] = fields[name][:count]


def _fewer_layers(fields: dict[str, Any], old: int) -> dict[str, Any]:
    """The first layers: enough for every kind that a list by layer names."""
    lists = {n: v for n, v in fields.items() if isinstance(v, list) and len(v) == old}
    count = min(old, _LAYERS)
    for values in lists.values():
        firsts = {repr(value): n for n, value in reversed(list(enumerate(values)))}
        count = max(count, 1 + max(firsts.values(), default=0))
    count = min(count, _MOST_LAYERS)
    fields |= {name: values[:count] for name, values in lists.items()}
    fields |= {name: count for name in _LAYER_COUNTS if _is_size(fields.get(name))}
    ends = (n for n, v in fields.items() if "layer" in n and n.endswith("_index") and _is_size(v))
    fields |= {name: min(fields[name], count - 1) for name in ends}
    return fields


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if _is_size(config.get(name))), None)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
