"""What differs between two confs: blocks, fields, what config.json is asked for, equations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from assembler.comparing.words import config_reads, yaml_text
from assembler.model.registry import BlockRegistry, argument_docs, summary

Kind = Literal["added", "dropped", "changed", "read"]  # read: config.json is asked in another way

_APART = ("layers", "variants", "wiring", "matches", "checkpoint", "defaults", "weight_map")


@dataclass(frozen=True)
class Change:
    """One difference; an empty text means that the side has nothing there."""

    kind: Kind
    where: str  # "layers.attn.qk_norm"; of a variant: "layers[sliding_attention].attn.window"
    new: str  # in the conf
    old: str  # in the other
    meaning: str = ""  # of the field or block, in the words of its documentation


@dataclass(frozen=True)
class Wiring:
    """The equations of one place on both sides, where they differ."""

    where: str  # "layers", "model", "layers[sliding_attention]"
    new: tuple[str, ...]
    old: tuple[str, ...]


def conf_changes(new: Any, old: Any, registry: BlockRegistry) -> list[Change]:
    """The differences of two composed confs, but for their equations."""
    changes = list(_place("", _blocks_of_model(new), _blocks_of_model(old), registry))
    for key in ("count", "streams", "kinds"):
        values = (_at(new, "layers", key), _at(old, "layers", key))
        changes += _values(f"layers.{key}", *values, meaning="")
    changes += _place(
        "layers.", _at(new, "layers", "blocks"), _at(old, "layers", "blocks"), registry
    )
    for start, a, b in (("", new, old), ("layers", _at(new, "layers"), _at(old, "layers"))):
        changes += _variants(start, _at(a, "variants") or {}, _at(b, "variants") or {}, registry)
    return changes


def wiring_changes(new: Any, old: Any) -> list[Wiring]:
    """The equations that differ, the model's first; those of variants that both sides have."""
    pairs = [("model", new, old), ("layers", _at(new, "layers"), _at(old, "layers"))]
    for start, a, b in (("", new, old), ("layers", _at(new, "layers"), _at(old, "layers"))):
        names = dict.fromkeys([*(_at(a, "variants") or {}), *(_at(b, "variants") or {})])
        pairs += [
            (f"{start}[{name}]", _at(a, "variants", name), _at(b, "variants", name))
            for name in names
        ]
    found = []
    for where, a, b in pairs:
        lines = tuple(tuple(map(str, _at(side, "wiring") or ())) for side in (a, b))
        if lines[0] != lines[1]:
            found.append(Wiring(where, *lines))
    return found


def _at(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _blocks_of_model(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in _APART}


def _variants(
    start: str, new: Mapping[str, Any], old: Mapping[str, Any], registry: BlockRegistry
) -> Iterator[Change]:
    """A variant that one side lacks is compared with nothing."""
    for name in dict.fromkeys([*new, *old]):
        where = f"{start}[{name}]"
        if name not in old:
            yield Change("added", where, "a kind of its own", "")
        if name not in new:
            yield Change("dropped", where, "", "a kind of its own")
        yield from _place(
            f"{where}.", _at(new, name, "blocks") or {}, _at(old, name, "blocks") or {}, registry
        )


def _place(
    start: str,
    new: Mapping[str, Any] | None,
    old: Mapping[str, Any] | None,
    registry: BlockRegistry,
) -> Iterator[Change]:
    """Named blocks and values side by side."""
    new, old = new or {}, old or {}
    for name in dict.fromkeys([*new, *old]):
        where = f"{start}{name}"
        if name in new and name in old:
            yield from _side_by_side(where, new[name], old[name], registry)
        elif name in new:
            yield Change("added", where, yaml_text(new[name]), "", _says(new[name], registry))
        else:
            yield Change("dropped", where, "", yaml_text(old[name]), _says(old[name], registry))


def _side_by_side(where: str, new: Any, old: Any, registry: BlockRegistry) -> Iterator[Change]:
    if not isinstance(new, Mapping) or not isinstance(old, Mapping):
        yield from _values(where, new, old, meaning="")
    elif new.get("block") != old.get("block"):
        yield Change("changed", where, yaml_text(new), yaml_text(old), _says(new, registry))
    else:
        docs = _field_docs(new, registry)
        for field in dict.fromkeys([*new, *old]):
            at = f"{where}.{field}"
            if field in new and field in old:
                yield from _values(at, new[field], old[field], docs.get(field, ""))
            elif field in new:
                yield Change("added", at, yaml_text(new[field]), "", docs.get(field, ""))
            else:
                yield Change("dropped", at, "", yaml_text(old[field]), docs.get(field, ""))


def _values(where: str, new: Any, old: Any, meaning: str) -> Sequence[Change]:
    """None or one change; `read` where both ask config.json and only names or defaults differ."""
    if new == old:
        return ()
    texts = ("" if new is None else yaml_text(new), "" if old is None else yaml_text(old))
    kind: Kind = "added" if old is None else "dropped" if new is None else "changed"
    if kind == "changed" and config_reads(texts[0]) and config_reads(texts[1]):
        kind = "read"
    return (Change(kind, where, *texts, meaning),)


def _says(value: Any, registry: BlockRegistry) -> str:
    name = _at(value, "block")
    return summary(registry.block_class(name)) if name in registry else ""


def _field_docs(value: Mapping[str, Any], registry: BlockRegistry) -> dict[str, str]:
    name = value.get("block")
    return argument_docs(registry.block_class(name)) if name in registry else {}
