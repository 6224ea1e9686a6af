"""`layers.kinds`: the kind of each layer, from a list or a rule in the layer's index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from assembler.errors import SpecError, did_you_mean
from assembler.model import expressions
from assembler.model.config_fields import missing_fields
from assembler.model.field_errors import KeyPath
from assembler.model.names import LAYER_INDEX
from assembler.model.spec import MOST_LAYERS

_ONLY_KIND = "layer"  # the name of the kind when all layers are alike
Report = Callable[[KeyPath, str], None]


def with_named_kinds(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with every kind as text: configs number the kinds, or say true and false."""
    layers = data.get("layers")
    if not isinstance(layers, Mapping):
        return dict(data)
    layers = dict(layers)
    if isinstance(layers.get("kinds"), list):
        layers["kinds"] = [_kind_name(kind) for kind in layers["kinds"]]
    if isinstance(layers.get("variants"), Mapping):
        layers["variants"] = {
            _kind_name(kind): {} if variant is None else variant
            for kind, variant in layers["variants"].items()
        }
    return {**data, "layers": layers}


def _kind_name(kind: Any) -> Any:
    if isinstance(kind, bool):
        return str(kind).lower()
    return str(kind) if isinstance(kind, int) else kind


def used_kinds(layers: Mapping[str, Any], report: Report) -> tuple[str, ...]:
    """The kind of each layer; () if what says it is wrong or missing, which others report."""
    count, kinds, variants = layers.get("count"), layers.get("kinds"), layers.get("variants") or {}
    if not isinstance(count, int) or not 0 < count <= MOST_LAYERS:
        return ()
    if not isinstance(variants, Mapping) or missing_fields(kinds):
        return ()
    key = ("layers", "kinds")
    if kinds is None:
        if len(variants) > 1:
            report(key, "needed: it says which variant each layer is")
        return tuple(variants or [_ONLY_KIND]) * count
    if isinstance(kinds, str):
        try:
            kinds = _kinds_by_rule(kinds, count, variants)
        except SpecError as error:
            report(key, str(error))
            return ()
    if not isinstance(kinds, list):
        return ()
    if len(kinds) < count:
        report(key, f"names {len(kinds)} layers, but layers.count is {count}")
    for kind in dict.fromkeys(map(str, kinds)):
        if kind not in variants:
            hint = did_you_mean(kind, variants)
            report(key, f"'{kind}' has no entry in layers.variants.{hint}")
    return tuple(map(str, kinds[:count]))


def _kinds_by_rule(rule: str, count: int, variants: Mapping[str, Any]) -> list[str]:
    tree = expressions.parse(rule)

    def value(i: int, name: str) -> Any:
        if name == LAYER_INDEX:
            return i
        if name in variants:
            return name
        known = [LAYER_INDEX, *variants]
        raise SpecError(f"unknown name '{name}' in '{rule}'.{did_you_mean(name, known)}")

    return [expressions.evaluate(tree, lambda name, i=i: value(i, name)) for i in range(count)]


def without_unused(data: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """`data` without the variants no layer is: what they need, this checkpoint need not have."""
    layers = data.get("layers")
    if not used or not isinstance(layers, Mapping):
        return dict(data)
    variants = {k: v for k, v in (layers.get("variants") or {}).items() if k in used}
    return {**data, "layers": {**layers, "variants": variants}}
