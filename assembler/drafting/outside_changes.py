"""What stands outside of the layers: head, final norm, positions, norm of the embeddings."""

from __future__ import annotations

from assembler.drafting.comparison import ABSENT, SEEN, Comparison
from assembler.drafting.norm_changes import settle_norm, take_weight, without_weights

_ROPE = "${hf_rope:null,{theta: 10000.0}}"
_TIED = "tie_word_embeddings"


def change_outside(found: Comparison) -> None:
    """Bring it in line with the tensors."""
    _head(found)
    _norms(found)
    _positions(found)


def _head(found: Comparison) -> None:
    sheet, parts = found.sheet, found.anatomy.parts
    on_disk = "lm_head" in parts and "weight" in parts["lm_head"].leaves
    if found.spec is None or ("lm_head.weight" in found.outside) != on_disk:
        tied = "false" if on_disk else "true"
        known = sheet.fields.get(_TIED)
        if known is False and not on_disk and _has_unknown_matrix(found):
            return  # the config says that there is a head, and it may be that one
        value = f"${{hf:{_TIED},{tied}}}" if known is (not on_disk) else not on_disk
        if sheet.get(("lm_head", "tied"), default=False) != value:
            sheet.set(("lm_head", "tied"), value, "whether there is a tensor of the head")
    wanted = "lm_head.bias" in found.anatomy.outside_leaves()
    if ("lm_head.bias" in found.outside) != wanted and found.spec is not None:
        sheet.set(("lm_head", "bias"), wanted, SEEN)


def _has_unknown_matrix(found: Comparison) -> bool:
    """Whether a matrix outside of the layers is of unknown use."""
    unknown = found.anatomy.unknown
    return any(len(t.shape) == 2 and t.name in unknown for t in found.anatomy.inventory.outside)


def _norms(found: Comparison) -> None:
    for name in ("norm", "embed_norm"):
        block, piece = found.sheet.get((name,)), found.anatomy.parts.get(name)
        if piece is not None:
            settle_norm(found, (name,), block, "bias" in piece.leaves)
        elif isinstance(block, dict) and name == "norm" and without_weights(found):
            take_weight(found, (name,), block)
        elif isinstance(block, dict):
            found.sheet.set((name,), None, ABSENT)


def _positions(found: Comparison) -> None:
    sheet, piece = found.sheet, found.anatomy.parts.get("positions")
    own = sheet.get(("positions",))
    learned = isinstance(own, dict) and own.get("block") == "LearnedPositions"
    if piece is None:
        if learned:
            sheet.set(("positions",), None, ABSENT)
            sheet.set_block("attn", "rope", _ROPE, "no learned positions")
        return
    rows = piece.shape[0]
    field = sheet.field("max_position_embeddings")
    length = sheet.fields.get(field) if field else rows
    built = found.spec.blocks.get("positions") if found.spec else None
    if learned and built is not None and built.count + built.offset == rows:
        return
    block = {"block": "LearnedPositions", "count": f"${{hf:{field}}}" if field else rows}
    if rows > length:
        block["offset"] = rows - length
    if learned and own.get("offset") and rows == length:
        block["offset"] = 0
    sheet.set(("positions",), block, "learned positions in the tensors")
    if not learned and sheet.get(("layers", "blocks", "attn", "rope")) is not None:
        sheet.set_block("attn", "rope", None, "positions are learned")
