"""New equations where the blocks of a layer, or of the model, are not those of the parent's."""

from __future__ import annotations

from assembler.drafting.comparison import ABSENT, LAYER_NORMS, Comparison
from assembler.drafting.equations import blocks_called, is_after, layer_wiring, model_wiring

_WHY = "from the norms and blocks that there are"
_ENDS = ("embed", "positions", "embed_norm", "norm", "lm_head")


def change_layer_wiring(found: Comparison) -> None:
    """Equations for each kind of layer, and the blocks that one of them lacks."""
    sheet, after = found.sheet, found.anatomy.after_branches
    if found.spec is None:
        if found.anatomy.inventory.count:
            last = found.anatomy.inventory.count - 1
            _write(found, ("layers",), last, tuple(sheet.get(("layers", "wiring")) or ()))
        return
    variants = sheet.get(("layers", "variants")) or {}
    for kind, layer in found.kinds():
        blocks = found.blocks_of(layer)
        owner = next((v for v in kind.variants if (variants.get(v) or {}).get("wiring")), None)
        if owner is None and "dense" in kind.variants:
            owner = "dense"
        place = ("layers", "variants", owner) if owner else ("layers",)
        if owner:
            _drop_absent(found, place, blocks)
        if blocks_called(kind.wiring) != blocks or is_after(kind.wiring) != after:
            _write(found, place, layer, kind.wiring)


def _drop_absent(found: Comparison, place: tuple[str, ...], blocks: frozenset[str]) -> None:
    """A variant takes back the shared norms that its layers have no tensor for."""
    for name in LAYER_NORMS:
        if name not in blocks and isinstance(found.block(name), dict):
            path = (*place, "blocks", name)
            if found.sheet.get(path, default="") is not None:
                found.sheet.set(path, None, ABSENT)


def _write(found: Comparison, place: tuple[str, ...], layer: int, own: tuple[str, ...]) -> None:
    blocks = found.blocks_of(layer)
    if blocks_called(own) == blocks and is_after(own) == found.anatomy.after_branches:
        return
    lines = layer_wiring(blocks, found.anatomy, found.sheet)
    found.sheet.set((*place, "wiring"), lines, _WHY)


def change_model_wiring(found: Comparison) -> None:
    """Equations of the model, where it calls a block that is not there or leaves one out."""
    blocks = {name for name in _ENDS if isinstance(found.sheet.get((name,)), dict)}
    own = found.spec.wiring if found.spec else found.sheet.get(("wiring",)) or ()
    called = blocks_called(own) - {"layers"}
    if called - blocks or blocks - called:
        found.sheet.set(("wiring",), model_wiring(blocks, found.sheet), _WHY)
