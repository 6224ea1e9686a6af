"""Norms: which there are, of which kind, and norms that have no weights at all."""

from __future__ import annotations

from typing import Any

from assembler.drafting import templates
from assembler.drafting.comparison import ABSENT, LAYER_NORMS, SEEN, Comparison

_BARE = "no norm has weights on disk"


def change_layer_norms(found: Comparison) -> None:
    """Bring the norms of a layer in line with the tensors."""
    bare = without_weights(found)
    for name in LAYER_NORMS:
        block, piece = found.block(name), found.anatomy.parts.get(f"layers.{name}")
        path = ("layers", "blocks", name)
        if piece is not None:
            settle_norm(found, path, block, "bias" in piece.leaves)
        elif isinstance(block, dict) and bare and name in ("attn_norm", "mlp_norm"):
            take_weight(found, path, block)
        elif isinstance(block, dict) and found.off(f"{name}."):
            found.sheet.set(path, None, ABSENT)


def without_weights(found: Comparison) -> bool:
    """Whether no norm of a layer has a tensor."""
    return not any(found.anatomy.has(name) for name in LAYER_NORMS)


def settle_norm(found: Comparison, path: tuple[str, ...], block: Any, bias: bool) -> None:
    """A norm of the right kind at `path`: by its bias, and by what the config calls its eps."""
    if not isinstance(block, dict):
        found.sheet.set(path, found.norm(bias, None), "a norm of that name in the tensors")
        return
    new = templates.norm_block(found.sheet, bias=bias, like=block)
    own = block.get("bias", True)
    has_bias = block.get("block") == "LayerNorm" and own is not False
    computed = isinstance(own, str)
    if (new["block"] != block.get("block") and "eps" in block) or (
        bias != has_bias and not computed
    ):
        found.sheet.set(path, new, "the kind of norm, by its bias and the name of its eps")
    elif block.get("weight") is False:
        found.sheet.set((*path, "weight"), True, SEEN)


def take_weight(found: Comparison, path: tuple[str, ...], block: dict[str, Any]) -> None:
    """A norm of which nothing is on disk."""
    if block.get("weight") is False:
        return
    found.sheet.set((*path, "weight"), False, _BARE)
    if block.get("block") == "LayerNorm":
        found.sheet.set((*path, "bias"), False, _BARE)
    if block.get("offset"):
        found.sheet.set((*path, "offset"), 0, _BARE)
