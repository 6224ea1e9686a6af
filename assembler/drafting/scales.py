"""Fields that say by their name what they scale, bound or choose, and that the parent ignores."""

from __future__ import annotations

from typing import Any

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.equations import PARALLEL_FIELDS, layer_wiring, model_wiring
from assembler.drafting.library import fields_read
from assembler.drafting.sheet import KeyPath, Sheet

_NAMED = "config.json names it"
# Fields of the attention block, by the field of config.json that gives them a value.
_ATTENTION = {
    "attention_multiplier": ("scale", "${{hf:{0}}}"),
    "query_pre_attn_scalar": ("scale", "${{calc:'{0} ** -0.5'}}"),
    "attn_logit_softcapping": ("softcap", "${{hf:{0}}}"),
    "clip_qkv": ("clip_qkv", "${{hf:{0}}}"),
    "rotary_dim": (
        "rope",
        "${{hf_rope:null,{{theta: 10000.0, partial: ${{calc:'{0} / {dim}'}}}}}}",
    ),
}
_ROUTER = {
    "routed_scaling_factor": "scale",
    "norm_topk_prob": "normalise",
    "scoring_func": "scores",
    "expert_selection_fn": "scores",
}
_ENDS = (
    "embedding_multiplier", "scale_emb", "logits_scaling", "logit_scale", "dim_model_base",
    "final_logit_softcapping", "logit_cap",
)  # fmt: skip
_BRANCHES = ("residual_multiplier", "residual_scale", "scale_depth", *PARALLEL_FIELDS)
_NO_ROPE = "no_rope_layers"


def settle_scales(sheet: Sheet, anatomy: Anatomy) -> None:
    """Write each of them where it belongs; equations that the parent has are then made anew."""
    read = fields_read(sheet.data)

    def ignored(name: str) -> str | None:
        known = sheet.field(name)
        return None if known is None or known in read else known

    _settle_attention(sheet, anatomy, ignored)
    _settle_forward(sheet, anatomy, ignored)
    if any(ignored(name) for name in _ENDS):
        blocks = {n for n in ("embed", "positions", "embed_norm", "norm") if _has(sheet, (n,))}
        sheet.set(("wiring",), model_wiring(blocks, sheet), "scales that config.json names")
    if any(ignored(name) for name in _BRANCHES):
        blocks = {
            leaf.partition(".")[0] for leaf in anatomy.layer_leaves(anatomy.inventory.count - 1)
        }
        lines = layer_wiring(blocks, anatomy, sheet)
        sheet.set(("layers", "wiring"), lines, "scales, or a parallel MLP, that config.json names")


def _settle_attention(sheet: Sheet, anatomy: Anatomy, ignored: Any) -> None:
    for name, (field, form) in _ATTENTION.items():
        if known := ignored(name):
            value = form.format(known, dim=_head_dim(sheet))
            sheet.set_block("attn", field, value, _NAMED)
    rotates = sheet.fields.get(_NO_ROPE)
    if ignored(_NO_ROPE) and isinstance(rotates, list) and len(set(rotates)) > 1:
        kinds = sheet.get(("layers", "kinds"))
        axes = kinds if isinstance(kinds, dict) else {} if kinds is None else {"layers": kinds}
        rule = f"rotated if ${{hf:{_NO_ROPE}}}[i] else not_rotated"
        sheet.set(("layers", "kinds"), {**axes, "positions": rule}, _NAMED)
        sheet.set(("layers", "variants", "rotated"), {}, "")
        bare = {"blocks": {"attn": {"rope": None}}}
        sheet.set(("layers", "variants", "not_rotated"), bare, "a 0 stands for no rotation")


def _settle_forward(sheet: Sheet, anatomy: Anatomy, ignored: Any) -> None:
    mlp = sheet.get(("layers", "blocks", "mlp"))
    if (known := ignored("hidden_act")) and isinstance(mlp, dict) and not anatomy.has("mlp.act"):
        sheet.set_block("mlp", "activation", f"${{hf:{known}}}", _NAMED)
    router: KeyPath = ("layers", "blocks", "moe", "router")
    if not isinstance(sheet.get(router), dict) or sheet.get((*router, "block")) != "Router":
        return
    for name, field in _ROUTER.items():
        if known := ignored(name):
            sheet.set((*router, field), f"${{hf:{known}}}", _NAMED)
    if ignored("n_group") and ignored("topk_group"):
        groups = {"count": "${hf:n_group}", "top": "${hf:topk_group}"}
        sheet.set((*router, "groups"), groups, _NAMED)


def _head_dim(sheet: Sheet) -> str:
    """The width of a head as an expression over config.json."""
    if dim := sheet.field("head_dim"):
        return dim
    hidden, heads = sheet.field("hidden_size"), sheet.field("num_attention_heads")
    return f"({hidden} // {heads})"


def _has(sheet: Sheet, path: KeyPath) -> bool:
    return isinstance(sheet.get(path), dict)
