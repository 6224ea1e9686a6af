"""`layers.kinds`: the kind of each layer, from lists or rules in the layer's index.

Layers may differ along several axes at once (their attention and their MLP, say). Each axis names
one variant a layer, and the kind of a layer is that combination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from assembler.errors import SpecError, did_you_mean
from assembler.model import expressions
from assembler.model.config_fields import missing_fields
from assembler.model.field_errors import KeyPath, shown
from assembler.model.names import LAYER_INDEX
from assembler.model.spec import MOST_LAYERS

_ONLY_KIND = "layer"  # the name of the kind when all layers are alike
_JOINT = "+"  # between the names of a combination
_KEY = ("layers", "kinds")
Report = Callable[[KeyPath, str], None]
Kind = tuple[str, ...]  # the variant on each axis, in the order of the axes


def kind_name(kind: Kind) -> str:
    """What the layers that are all of these variants are called."""
    return _JOINT.join(kind)


def with_named_kinds(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with every kind as text: configs number the kinds, or say true and false."""
    layers = data.get("layers")
    if not isinstance(layers, Mapping):
        return dict(data)
    layers = dict(layers)
    if isinstance(layers.get("kinds"), Mapping):
        layers["kinds"] = {axis: _named(kinds) for axis, kinds in layers["kinds"].items()}
    elif "kinds" in layers:
        layers["kinds"] = _named(layers["kinds"])
    if isinstance(layers.get("variants"), Mapping):
        layers["variants"] = {
            _text(kind): {} if variant is None else variant
            for kind, variant in layers["variants"].items()
        }
    return {**data, "layers": layers}


def _named(kinds: Any) -> Any:
    return [_text(kind) for kind in kinds] if isinstance(kinds, list) else kinds


def _text(kind: Any) -> Any:
    if isinstance(kind, bool):
        return str(kind).lower()
    return str(kind) if isinstance(kind, int) else kind


def used_kinds(layers: Mapping[str, Any], report: Report) -> tuple[Kind, ...]:
    """The kind of each layer; () if what says it is wrong or missing, which others report."""
    count, kinds, variants = layers.get("count"), layers.get("kinds"), layers.get("variants") or {}
    if not isinstance(count, int) or not 0 < count <= MOST_LAYERS:
        return ()
    if not isinstance(variants, Mapping):
        return ()
    axes = dict(_axes(kinds))
    if not axes:
        if len(variants) > 1:
            report(_KEY, "needed: it says which variant each layer is")
        return (tuple(variants)[:1] or (_ONLY_KIND,),) * count
    columns = {key: _column(key, axes[key], count, variants, report) for key in axes}
    if len(columns) > 1:
        _check_apart(columns, report)
    if not all(columns.values()):
        return ()
    return tuple(zip(*columns.values(), strict=False))  # a list that is too short was reported


def _axes(kinds: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The rule of each axis by its key in the YAML; null takes back an inherited axis."""
    if not isinstance(kinds, Mapping):
        kinds = {None: kinds}
    for axis, rule in kinds.items():
        if rule is not None:
            yield (_KEY if axis is None else (*_KEY, axis)), rule


def _column(
    key: KeyPath, kinds: Any, count: int, variants: Mapping[str, Any], report: Report
) -> Kind:
    """The variant of each layer on one axis; () if something is wrong or missing."""
    if isinstance(kinds, str) and not missing_fields(kinds):
        try:
            kinds = _kinds_by_rule(kinds, count, variants)
        except SpecError as error:
            report(key, str(error))
            return ()
    if missing_fields(kinds):
        return ()
    if not isinstance(kinds, list):
        report(key, f"must be a list or a rule in {LAYER_INDEX} (got {shown(kinds)})")
        return ()
    if len(kinds) < count:
        report(key, f"names {len(kinds)} layers, but layers.count is {count}")
    for kind in dict.fromkeys(map(str, kinds)):
        if kind not in variants and not missing_fields(kind):
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

    kinds = []
    for i in range(count):
        try:
            kinds.append(_text(expressions.evaluate(tree, lambda name, i=i: value(i, name))))
        except expressions.NoSuchItem as error:
            raise SpecError(f"{error} (in layer {i} of {count})") from None
    return kinds


def _check_apart(columns: Mapping[KeyPath, Kind], report: Report) -> None:
    """A name stands for one variant, so only one axis can give it."""
    owners: dict[str, KeyPath] = {}
    for key, kinds in columns.items():
        for kind in dict.fromkeys(kinds):
            if _JOINT in kind:
                report(key, f"'{kind}': a name with '{_JOINT}' would read like a combination")
            if owners.setdefault(kind, key) != key:
                report(key, f"'{kind}' is a kind of the axis '{owners[kind][-1]}' already")


def without_unused(data: Mapping[str, Any], used: tuple[Kind, ...]) -> dict[str, Any]:
    """`data` without the variants no layer is: what they need, this checkpoint need not have."""
    layers = data.get("layers")
    if not used or not isinstance(layers, Mapping):
        return dict(data)
    names = {name for kind in used for name in kind}
    variants = {k: v for k, v in (layers.get("variants") or {}).items() if k in names}
    return {**data, "layers": {**layers, "variants": variants}}
