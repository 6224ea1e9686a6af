"""Whole blocks written from the words of a config.json, for what the parent has no like of."""

from __future__ import annotations

from typing import Any

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.sheet import Sheet

_ROPE = "${hf_rope:null,{theta: 10000.0}}"


def norm_block(sheet: Sheet, *, bias: bool, like: Any = None) -> dict[str, Any]:
    """A norm of the kind that a bias and the name of its eps point to."""
    eps = sheet.field("rms_norm_eps")
    if bias:
        kind = "LayerNorm"
    elif eps is not None:
        kind = "RMSNorm" if "rms" in eps else "LayerNorm" if "layer" in eps else None
    else:
        kind = None
    if kind is None:
        kind = "LayerNorm" if bias else (like or {}).get("block", "RMSNorm")
    block: dict[str, Any] = {"block": kind}
    if eps is not None:
        block["eps"] = f"${{hf:{eps}}}"
    elif isinstance(like, dict) and "eps" in like:
        block["eps"] = like["eps"]
    else:
        block["eps"] = 1e-5
    if kind == "LayerNorm" and (not bias or (isinstance(like, dict) and "bias" in like)):
        block["bias"] = bias
    if isinstance(like, dict) and like.get("offset") and like.get("block") == kind:
        block["offset"] = like["offset"]
    return block


def attention_block(sheet: Sheet, anatomy: Anatomy) -> dict[str, Any]:
    """Grouped-query attention, or latent attention where there are latents."""
    heads = sheet.ref("num_attention_heads")
    if anatomy.has("attn.kv_a"):
        return {
            "block": "LatentAttn",
            "num_heads": heads,
            "q_lora_rank": "${hf:q_lora_rank,null}",
            "kv_lora_rank": "${hf:kv_lora_rank}",
            "nope_head_dim": "${hf:qk_nope_head_dim}",
            "rope_head_dim": "${hf:qk_rope_head_dim}",
            "v_head_dim": "${hf:v_head_dim}",
            "norm": {"block": "RMSNorm", "eps": 1e-6},
            "rope": "${hf_rope:null,{theta: 10000.0, style: interleaved}}",
        }
    block: dict[str, Any] = {"block": "RopeAttn", "num_heads": heads}
    if kv := sheet.ref("num_key_value_heads"):
        block["num_kv_heads"] = kv
    if dim := sheet.ref("head_dim"):
        block["head_dim"] = dim
    if "positions" not in anatomy.parts:
        block["rope"] = _ROPE
    return block


def activation(sheet: Sheet, like: Any) -> Any:
    """The activation by its field; else what the parent has."""
    named = sheet.ref("hidden_act")
    found = (like or {}).get("activation") if isinstance(like, dict) else None
    return named or found or "silu"


def mlp_block(sheet: Sheet, anatomy: Anatomy, place: str, like: Any) -> dict[str, Any]:
    """A gated MLP where there is a gate, else a plain one."""
    gated = anatomy.has(f"{place}.gate_up")
    block: dict[str, Any] = {
        "block": "GatedMLP" if gated else "MLP",
        "intermediate_size": width_ref(sheet, anatomy, place),
        "activation": {"block": "XIELU"}
        if anatomy.has(f"{place}.act")
        else activation(sheet, like),
    }
    if bias_of(anatomy, f"{place}.down"):
        block["bias"] = sheet.flag_ref(place, True)
    return block


def moe_block(sheet: Sheet, anatomy: Anatomy, like: Any) -> dict[str, Any]:
    """A mixture of experts; how it scores is told by fields that name it."""
    scores = sheet.ref("scoring_func", "score_func", "expert_selection_fn", "score_function")
    router: dict[str, Any] = {
        "block": "Router",
        "scores": scores or ("sigmoid" if anatomy.has("moe.router.selection_bias") else "softmax"),
        "normalise": sheet.ref("norm_topk_prob", "route_norm") or True,
    }
    if scale := sheet.ref("routed_scaling_factor"):
        router["scale"] = scale
    experts = {
        "block": "GatedExperts",
        "intermediate_size": width_ref(sheet, anatomy, "moe.experts"),
        "activation": activation(sheet, like),
    }
    return {
        "block": "MoE",
        "num_experts": sheet.ref("num_experts"),
        "top_k": sheet.ref("num_experts_per_tok"),
        "router": router,
        "experts": experts,
    }


def width(anatomy: Anatomy, place: str) -> int | None:
    """The width inside of an MLP, an expert or the shared expert, from the shape of `down`."""
    piece = next(
        (
            anatomy.parts[k]
            for e in ("", ".weight")
            if (k := f"layers.{place}.down{e}") in anatomy.parts
        ),
        None,
    )
    hidden = anatomy.hidden
    if piece is None or len(piece.shape) < 2:
        return None
    rows, columns = piece.shape[-2:]
    experts = anatomy.parts.get("layers.moe.router")
    if (
        place == "moe.experts"
        and len(piece.shape) == 2
        and experts
        and "{e}" not in str(piece.rule)
    ):
        return rows // experts.shape[0]
    return rows if columns == hidden else columns


def width_ref(sheet: Sheet, anatomy: Anatomy, place: str) -> Any:
    """That width as the field of config.json that has it, or as a multiple of one, or a number."""
    size = width(anatomy, place)
    names = ["intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"]
    if place != "mlp":
        names = names[1:] + names[:1] if place == "moe.experts" else [names[2], names[1], names[0]]
    for name in names:
        field = sheet.field(name)
        if field is not None and sheet.fields.get(field) == size:
            return f"${{hf:{field}}}"
    times = sheet.field("n_shared_experts")
    for name in names:
        one, count = sheet.number(name), sheet.number("n_shared_experts")
        if place == "shared" and one and count and one * count == size:
            return f"${{calc:'{sheet.field(name)} * {times}'}}"
    return size


def bias_of(anatomy: Anatomy, target: str) -> bool:
    """Whether the module has a bias on disk."""
    piece = anatomy.parts.get(f"layers.{target}")
    return (
        piece is not None and "bias" in piece.leaves
    ) or f"layers.{target}.bias" in anatomy.parts
