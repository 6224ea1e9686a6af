"""`kinds`: which variants a model and each of its layers are, from lists or rules.

Layers may differ along several axes at once (their attention and their MLP, say). Each axis names
one variant a layer, and the kind of a layer is that combination. A model is of one kind in the same
way, of which no layer index is part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from assembler.errors import SpecError, did_you_mean
from assembler.model import expressions
from assembler.model.config_fields import missing_fields
from assembler.model.field_errors import KeyPath, dotted, shown
from assembler.model.names import LAYER_INDEX
from assembler.model.spec import MOST_LAYERS

_ONLY_KIND = "layer"  # the name of the kind when all layers are alike
_JOINT = "+"  # between the names of a combination
Report = Callable[[KeyPath, str], None]
Kind = tuple[str, ...]  # the variant on each axis, in the order of the axes


def kind_name(kind: Kind) -> str:
    """What the layers that are all of these variants are called."""
    return _JOINT.join(kind)


def with_named_kinds(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with every kind as text: configs number the kinds, or say true and false."""
    data = _with_named_kinds(data)
    if isinstance(data.get("layers"), Mapping):
        data["layers"] = _with_named_kinds(data["layers"])
    return data


def _with_named_kinds(place: Mapping[str, Any]) -> dict[str, Any]:
    named = dict(place)
    if isinstance(named.get("kinds"), Mapping):
        named["kinds"] = {axis: _named(kinds) for axis, kinds in named["kinds"].items()}
    elif "kinds" in named:
        named["kinds"] = _named(named["kinds"])
    if isinstance(named.get("variants"), Mapping):
        named["variants"] = {
            _text(kind): {} if variant is None else variant
            for kind, variant in named["variants"].items()
        }
    return named


def _named(kinds: Any) -> Any:
    return [_text(kind) for kind in kinds] if isinstance(kinds, list) else kinds


def _text(kind: Any) -> Any:
    if isinstance(kind, bool):
        return str(kind).lower()
    return str(kind) if isinstance(kind, int) else kind


@dataclass(frozen=True)
class _Place:
    """Where kinds are chosen: the layers, or the model as if it were one of them."""

    count: int
    variants: Mapping[str, Any]
    key: KeyPath  # of its `kinds`
    rule_names: tuple[str, ...]  # numbers that a rule may use
    report: Report


def used_kinds(layers: Mapping[str, Any], report: Report) -> tuple[Kind, ...]:
    """The kind of each layer; () if what says it is wrong or missing, which others report."""
    count, variants = layers.get("count"), layers.get("variants") or {}
    if not isinstance(count, int) or not 0 < count <= MOST_LAYERS:
        return ()
    if not isinstance(variants, Mapping):
        return ()
    place = _Place(count, variants, ("layers", "kinds"), (LAYER_INDEX,), report)
    return _kinds_in(place, layers.get("kinds")) or (() if variants else ((_ONLY_KIND,),) * count)


def model_kind(data: Mapping[str, Any], report: Report) -> Kind | None:
    """The variants that the model is; None if what says it is wrong or missing."""
    variants = data.get("variants") or {}
    if not isinstance(variants, Mapping):
        return None
    if not variants and not data.get("kinds"):
        return ()
    kinds = _kinds_in(_Place(1, variants, ("kinds",), (), report), data.get("kinds"))
    return kinds[0] if kinds else None


def _kinds_in(place: _Place, kinds: Any) -> tuple[Kind, ...]:
    """The kind of each layer of a place; () without any or if something is wrong or missing."""
    axes = dict(_axes(kinds, place.key))
    if not axes:
        if len(place.variants) > 1:
            place.report(place.key, "needed: it says which of the variants count")
        return (tuple(place.variants)[:1],) * place.count if place.variants else ()
    columns = {key: _column(key, axes[key], place) for key in axes}
    if len(columns) > 1:
        _check_apart(columns, place.report)
    if not all(columns.values()):
        return ()
    return tuple(zip(*columns.values(), strict=False))  # a list that is too short was reported


def _axes(kinds: Any, key: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """The rule of each axis by its key in the YAML; null takes back an inherited axis."""
    if not isinstance(kinds, Mapping):
        kinds = {None: kinds}
    for axis, rule in kinds.items():
        if rule is not None:
            yield (key if axis is None else (*key, axis)), rule


def _column(key: KeyPath, kinds: Any, place: _Place) -> Kind:
    """The variant of each layer on one axis; () if something is wrong or missing."""
    if isinstance(kinds, str) and not missing_fields(kinds):
        try:
            kinds = _kinds_by_rule(kinds, place)
        except SpecError as error:
            place.report(key, str(error))
            return ()
    if missing_fields(kinds):
        return ()
    if not isinstance(kinds, list):
        place.report(key, f"must be a list or a rule (got {shown(kinds)})")
        return ()
    if len(kinds) < place.count:
        place.report(key, f"names {len(kinds)} layers, but layers.count is {place.count}")
    for kind in dict.fromkeys(map(str, kinds)):
        if kind not in place.variants and not missing_fields(kind):
            where = dotted((*place.key[:-1], "variants"))
            hint = did_you_mean(kind, place.variants)
            place.report(key, f"'{kind}' has no entry in {where}.{hint}")
    return tuple(map(str, kinds[: place.count]))


def _kinds_by_rule(rule: str, place: _Place) -> list[str]:
    tree = expressions.parse(rule)

    def value(i: int, name: str) -> Any:
        if name in place.rule_names:
            return i
        if name in place.variants:
            return name
        known = [*place.rule_names, *place.variants]
        raise SpecError(f"unknown name '{name}' in '{rule}'.{did_you_mean(name, known)}")

    kinds = []
    for i in range(place.count):
        try:
            kinds.append(_text(expressions.evaluate(tree, lambda name, i=i: value(i, name))))
        except expressions.NoSuchItem as error:
            layer = f" (in layer {i} of {place.count})" if place.rule_names else ""
            raise SpecError(f"{error}{layer}") from None
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


def without_unused(
    data: Mapping[str, Any], kind: Kind | None, used: tuple[Kind, ...]
) -> dict[str, Any]:
    """`data` without what no layer has: what it needs, this checkpoint need not have.

    That is the variants nothing is, and the shared blocks that all that is used drops.
    """
    kept = dict(data) if kind is None else _with_variants(data, {kind})
    layers = data.get("layers")
    if used and isinstance(layers, Mapping):
        kept["layers"] = _with_variants(layers, set(used))
        blocks = layers.get("blocks")
        if isinstance(blocks, Mapping):
            dropped = _dropped_by_all(layers, used)
            kept["layers"]["blocks"] = {k: v for k, v in blocks.items() if k not in dropped}
    return kept


def _with_variants(place: Mapping[str, Any], used: set[Kind]) -> dict[str, Any]:
    names = {name for kind in used for name in kind}
    variants = place.get("variants")
    if not isinstance(variants, Mapping):
        return dict(place)
    return {**place, "variants": {k: v for k, v in variants.items() if k in names}}


def _dropped_by_all(place: Mapping[str, Any], used: tuple[Kind, ...]) -> set[str]:
    """The blocks that every one of the used kinds sets to null in one of its variants."""
    variants = place.get("variants")

    def dropped(name: str) -> set[str]:
        variant = variants.get(name) if isinstance(variants, Mapping) else None
        blocks = variant.get("blocks") if isinstance(variant, Mapping) else None
        entries = blocks.items() if isinstance(blocks, Mapping) else ()
        return {block for block, change in entries if change is None}

    return set.intersection(*(set().union(*map(dropped, kind)) for kind in set(used)))
