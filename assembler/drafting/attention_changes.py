"""Attention: its kind, the sizes of its heads, biases, norms of queries and keys, sinks, gates."""

from __future__ import annotations

from typing import Any

from assembler.drafting import templates
from assembler.drafting.comparison import SEEN, Comparison

_LATENT = "LatentAttn"
_ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "rotary_dim")


def change_attention(found: Comparison) -> None:
    """Bring the attention block in line with the tensors."""
    attn = found.block("attn")
    latent = found.anatomy.has("attn.kv_a")
    wrong_kind = not isinstance(attn, dict) or (attn.get("block") == _LATENT) != latent
    if wrong_kind or (not latent and _should_rotate(found, attn)):
        found.replace("attn", templates.attention_block(found.sheet, found.anatomy))
    if latent:
        found.flag("attn", "bias", "attn.kv_a.bias")
        return
    _head_sizes(found)
    found.flag("attn", "qkv_bias", "attn.qkv.bias")
    found.flag("attn", "o_bias", "attn.o.bias")
    found.flag("attn", "sinks", "attn.sinks")
    _qk_norm(found)
    found.nested_norm("attn", "out_norm", "attn.out_norm.weight")
    gate = found.wants("attn.gate.proj.weight")
    if gate is not None and gate != bool(attn.get("gate")):
        found.sheet.set_block("attn", "gate", {"block": "OutputGate"} if gate else None, SEEN)


def _should_rotate(found: Comparison, attn: dict[str, Any]) -> bool:
    """Whether config.json has a RoPE and the parent's attention can have none."""
    fields = found.sheet.fields
    if not any(isinstance(fields.get(n), dict | float | int) for n in _ROPE_FIELDS):
        return False
    return attn.get("block") != "RopeAttn" and fields.get("alibi") is not True


def _head_sizes(found: Comparison) -> None:
    """Heads and their width, where the rows on disk are others than the draft's."""
    built, piece = found.built("attn"), found.anatomy.parts.get("layers.attn.qkv")
    hidden = found.anatomy.hidden
    if built is None or piece is None or hidden is None:
        return
    heads = built.num_heads
    kv_heads = built.num_kv_heads or heads
    dim = built.head_dim or hidden // heads
    if len(piece.rows) == 3:  # apart on disk
        dim, rest = divmod(piece.rows[0], heads)
        wanted_kv, rest_kv = divmod(piece.rows[1], dim or 1)
    else:
        fused = piece.rows[0]
        if fused == (heads + 2 * kv_heads) * dim:
            return
        if fused != (heads + 2) * dim and found.sheet.field("head_dim") is None:
            dim = hidden // heads
        wanted_kv, rest_kv = divmod(fused - heads * dim, 2 * dim)
        rest = 0
    if rest or rest_kv or not wanted_kv:
        return
    if dim != (built.head_dim or hidden // heads):
        value = None if dim * heads == hidden else _named(found, ("head_dim",), dim)
        found.sheet.set_block("attn", "head_dim", value, "from the shape of the queries")
    if wanted_kv != kv_heads:
        value = _named(found, ("num_key_value_heads",), wanted_kv)
        found.sheet.set_block("attn", "num_kv_heads", value, "from the shape of the keys")


def _named(found: Comparison, names: tuple[str, ...], number: int) -> Any:
    """The number as the field of config.json that has it, else itself."""
    field = found.sheet.field(*names)
    return f"${{hf:{field}}}" if field and found.sheet.fields.get(field) == number else number


def _qk_norm(found: Comparison) -> None:
    """Whether queries and keys are normed, and what one norm spans."""
    piece = found.anatomy.parts.get("layers.attn.q_norm")
    own = found.block("attn").get("qk_norm")
    if piece is None:
        if found.wants("attn.q_norm.weight") is False and own is not None:
            found.sheet.set_block("attn", "qk_norm", None, SEEN)
        return
    span = _span(found)
    wrapped = isinstance(own, dict) and own.get("block") == "QKNorm"
    norm = own.get("norm") if wrapped else own
    same_span = (own.get("over", "head") if wrapped else "head") == span
    if same_span and norm is not None and not found.off("attn.q_norm"):
        return
    if norm is None or found.off("attn.q_norm.bias"):
        norm = found.norm("bias" in piece.leaves, norm)
    block = {"block": "QKNorm", "norm": norm, "over": span}
    if wrapped and "position" in own:
        block["position"] = own["position"]
    plain = span == "head" and "position" not in block
    found.sheet.set_block("attn", "qk_norm", norm if plain else block, "from the tensors' shapes")


def _span(found: Comparison) -> str:
    """What one norm of the queries spans, by the shape of its weight."""
    piece = found.anatomy.parts["layers.attn.q_norm"]
    qkv = found.anatomy.parts.get("layers.attn.qkv")
    if "{e}" in str(piece.rule) or len(piece.shape) == 2:
        return "each_head"
    apart = qkv is not None and len(qkv.rows) == 3
    return "full" if apart and piece.shape[:1] == qkv.rows[:1] else "head"
