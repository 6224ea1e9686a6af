"""Layers that differ: windows and RoPE by `layer_types`, dense layers among sparse ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assembler.drafting.anatomy import Anatomy
from assembler.drafting.fields import resolved
from assembler.drafting.sheet import Sheet
from assembler.errors import SpecError
from assembler.model.config_fields import missing_fields
from assembler.model.names import LAYER_INDEX

_TYPES = "layer_types"
_ALIKE = "alike"
_WINDOW_NAMES = ("sliding_window",)


def settle_kinds(sheet: Sheet) -> None:
    """Make `layers.kinds` name what this checkpoint's layers are."""
    _drop_broken_axes(sheet)
    _attention_axis(sheet)
    _window(sheet)


def _axes(sheet: Sheet) -> dict[str, Any]:
    kinds = sheet.get(("layers", "kinds"))
    if isinstance(kinds, Mapping):
        return {axis: rule for axis, rule in kinds.items() if rule is not None}
    return {} if kinds is None else {"": kinds}


def _drop_broken_axes(sheet: Sheet) -> None:
    """Axes whose rule needs what config.json lacks, or names kinds that have no variant."""
    for axis, rule in _axes(sheet).items():
        place = ("layers", "kinds", axis) if axis else ("layers", "kinds")
        try:
            value = resolved(sheet, place)
        except SpecError:
            value = None
        missing = missing_fields(value) if not isinstance(value, list) else []
        if value is None or missing:
            sheet.set(place, None, f"config.json does not say what the parent's rule asks: {rule}")


def _attention_axis(sheet: Sheet) -> None:
    types = sheet.fields.get(_TYPES)
    if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
        return
    variants = sheet.get(("layers", "variants")) or {}
    if _TYPES not in str(_axes(sheet)):
        if set(types) == {"full_attention"} and not variants:
            return
        _add_axis(sheet, "attention", f"${{hf:{_TYPES}}}", "layers of several types")
        shared = sheet.get(("layers", "blocks", "attn", "window"))
        if shared is not None:
            sheet.set_block("attn", "window", None, "only some layers have it")
    for kind in dict.fromkeys(types):
        own = (sheet.get(("layers", "variants")) or {}).get(kind)
        if own is None:
            sheet.set(
                ("layers", "variants", kind), _variant(sheet, kind), f"what {kind} layers are"
            )
        _own_rope(sheet, kind)


def _variant(sheet: Sheet, kind: str) -> dict[str, Any]:
    if "sliding" in kind and (window := sheet.ref(*_WINDOW_NAMES)):
        return {"blocks": {"attn": {"window": window}}}
    if "chunked" in kind and (chunk := sheet.ref("attention_chunk_size")):
        return {"blocks": {"attn": {"chunk": chunk}}}
    return {}


def _own_rope(sheet: Sheet, kind: str) -> None:
    """Each kind's RoPE where config.json has settings by type of layer."""
    settings = sheet.fields.get("rope_parameters")
    if not isinstance(settings, Mapping) or kind not in settings:
        return
    path = ("layers", "variants", kind, "blocks", "attn", "rope")
    rope = sheet.get(path)
    if isinstance(rope, str) and "hf_rope" in rope:
        return
    sheet.set(path, f"${{hf_rope:{kind}}}", "config.json has a RoPE for each type of layer")
    sheet.set(("layers", "blocks", "attn", "rope"), None, "each type of layer has its own")


def _add_axis(sheet: Sheet, axis: str, rule: Any, why: str) -> None:
    kinds = sheet.get(("layers", "kinds"))
    if kinds is None or isinstance(kinds, Mapping):
        sheet.set(("layers", "kinds", axis), rule, why)
    else:
        sheet.set(("layers", "kinds"), {"layers": kinds, axis: rule}, why)


def name_one_kind(sheet: Sheet) -> None:
    """Where no axis is left and the parent has variants, a kind without any change."""
    if not _axes(sheet) and sheet.get(("layers", "variants")):
        sheet.set(("layers", "kinds"), _ALIKE, "all layers are alike")
        sheet.set(("layers", "variants", _ALIKE), {}, "")


def _window(sheet: Sheet) -> None:
    """A window for all layers where nothing else asks for the one in config.json."""
    field = sheet.field(*_WINDOW_NAMES)
    if field is None or isinstance(sheet.fields.get(_TYPES), list):
        return
    if "window" in str(sheet.get(("layers",))):
        return
    switch = sheet.fields.get("use_sliding_window")
    if switch is not False:
        sheet.set_block("attn", "window", f"${{hf:{field}}}", "config.json names a window")


def only_sparse(sheet: Sheet) -> None:
    """Every layer sparse, on the axis of the parent that chooses."""
    for axis, rule in _axes(sheet).items():
        if "sparse" in str(rule) and isinstance(rule, str):
            place = ("layers", "kinds", axis) if axis else ("layers", "kinds")
            sheet.set(place, "sparse", "every layer has a mixture, as the tensors show")


def dense_and_sparse(sheet: Sheet, anatomy: Anatomy) -> None:
    """An axis for layers with an MLP among layers with a mixture, as the tensors lie."""
    sparse = set(anatomy.parts["layers.moe.router"].layers)
    count = anatomy.inventory.count
    first = min(sparse)
    field = sheet.field("first_k_dense_replace")
    if sparse == set(range(first, count)) and field and sheet.fields.get(field) == first:
        rule: Any = f"dense if {LAYER_INDEX} < ${{hf:{field}}} else sparse"
    else:
        rule = ["sparse" if layer in sparse else "dense" for layer in range(count)]
    for axis, old in _axes(sheet).items():
        if "dense" in str(old) or "sparse" in str(old):
            sheet.set(("layers", "kinds", axis) if axis else ("layers", "kinds"), None, "")
    _add_axis(sheet, "mlp", rule, "which layers have a mixture, as the tensors show")
    for kind in ("dense", "sparse"):
        if (sheet.get(("layers", "variants")) or {}).get(kind) is None:
            sheet.set(("layers", "variants", kind), {}, f"what {kind} layers are")
