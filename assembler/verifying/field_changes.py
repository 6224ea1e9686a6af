"""The settings a block might have had instead: every field's plausible other values.

Choices and switches come from the fields' types. Numbers come from config.json, wherever a key
speaks of the same thing, and from `NUMBERS`, the constants that modeling code is fond of.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from assembler.model.registry import BlockRegistry, BlockSpec
from assembler.verifying.yaml_words import as_written, said


@dataclass(frozen=True)
class Sizes:
    """What derived constants are made of."""

    hidden_size: int
    num_heads: int
    head_dim: int


@dataclass(frozen=True)
class Other:
    """Another value of a field, and where it is from."""

    value: Any
    source: str = ""


@dataclass(frozen=True)
class Number:
    """Where a number field's other values come from."""

    words: tuple[str, ...]  # in keys of config.json
    constants: tuple[float, ...] = ()
    is_scale: bool = False  # roots and inverses of widths and of what config.json says count too
    nearby: tuple[int, ...] = ()


def _widths(sizes: Sizes) -> Iterator[Other]:
    named = {"head_dim": sizes.head_dim, "hidden_size": sizes.hidden_size}
    named["hidden_size / num_heads"] = sizes.hidden_size / sizes.num_heads
    for name, width in named.items():
        yield Other(width**-0.5, f"1 / sqrt({name})")
    yield from (Other(1 / width, f"1 / ({name})") for name, width in named.items())
    yield Other(sizes.hidden_size**0.5, "sqrt(hidden_size)")


def _of_config(key: str, value: float, is_scale: bool) -> Iterator[Other]:
    yield Other(value, f"{key} of config.json")
    if is_scale and value > 0:
        yield Other(value**-0.5, f"{key} ** -0.5 of config.json")
        yield Other(value**0.5, f"sqrt({key}) of config.json")
        yield Other(1 / value, f"1 / {key} of config.json")


_SCALE = Number(("scal", "multiplier", "factor"), (1.0,), is_scale=True)
NUMBERS: Mapping[str, Number] = {
    "eps": Number(("eps",), (1e-5, 1e-6, 1e-8, 1e-12, 0.0)),
    "offset": Number(("pad",), (0, 1, 2)),
    "scale": _SCALE,
    "theta": Number(("theta", "base"), (10_000.0, 500_000.0, 1_000_000.0)),
    "partial": Number(("partial", "rotary", "pct"), (1.0, 0.5, 0.25)),
    "window": Number(("window",), nearby=(-1, 1)),
    "chunk": Number(("chunk",), nearby=(-1, 1)),
    "softcap": Number(("cap",)),
    "clip_qkv": Number(("clip",)),
    "max_bias": Number(("alibi",), (8.0,)),
    "limit": Number(("limit", "clamp")),
    "up_offset": Number((), (0.0, 1.0)),
    "min_sum": Number((), (0.0, 1e-20, 1e-9, 1e-6)),
    "factor": Number(("factor",), (1.0,)),
    "top_k": Number(("top", "per_tok")),
    "top": Number(("topk_group",)),
    "count": Number(("group",)),
    "jitter_eps": Number(("jitter",)),
    "beta": Number(("beta", "scale")),
    "length": Number(("original", "floor")),
}


@dataclass(frozen=True)
class FieldChange:
    """A block's entry with one field changed."""

    field: str  # rope.theta
    value: str  # as the YAML would say it, and where it is from
    old: str
    entry: BlockSpec


def field_changes(
    entry: BlockSpec,
    registry: BlockRegistry,
    config: Mapping[str, Any],
    sizes: Sizes,
    parameters: Collection[str],
) -> Iterator[FieldChange]:
    """Every entry that differs from `entry` in one field and is valid.

    Args:
        config: config.json.
        sizes: of the model.
        parameters: names of the block's parameters, which say what a norm of another type has.
    """
    data = entry.model_dump()
    found = dict(_leaves(config))
    seen = [entry]
    for path, old, other in _alternatives(entry, (), registry, found, sizes, parameters):
        value = other.value
        try:
            changed = registry[data["block"] if path else value["block"]].model_validate(
                _replaced(data, path, value)
            )
        except ValidationError:
            continue
        if changed not in seen:
            seen.append(changed)
            is_block = isinstance(value, Mapping) and "block" in value
            name = ".".join(as_written(entry, (*path, "block") if is_block else path, registry))
            text = value["block"] if is_block else said(value)
            source = f" ({other.source})" if other.source else ""
            yield FieldChange(name, f"{text}{source}", said(old), changed)


def _alternatives(
    node: BaseModel,
    path: tuple[str, ...],
    registry: BlockRegistry,
    known: Mapping[str, Any],
    sizes: Sizes,
    parameters: Collection[str],
) -> Iterator[tuple[tuple[str, ...], Any, Other]]:
    """(path of the field, its value, another value) over a block and what is nested in it."""
    if isinstance(node, BlockSpec):
        yield from _other_norms(node, path, registry, parameters)
    for name, info in type(node).model_fields.items():
        value, place = getattr(node, name), (*path, name)
        if name == "block":
            continue
        for other in _values(name, value, info, known, sizes):
            yield place, value, other
        if isinstance(value, BaseModel):
            yield from _alternatives(value, place, registry, known, sizes, parameters)


def _values(
    name: str, value: Any, info: FieldInfo, known: Mapping[str, Any], sizes: Sizes
) -> Iterator[Other]:
    """Other values of one field, the likeliest first."""
    if isinstance(value, bool):
        yield Other(not value)
        return
    takes = _members(info.annotation)
    if value is not None and type(None) in takes:
        yield Other(None)
    number = NUMBERS.get(name)
    if number is not None and (value is None or isinstance(value, int | float)):
        yield from _numbers(number, value, known, sizes)
    if value is not None:
        for member in takes:
            if typing.get_origin(member) is Literal:
                yield from _choices(typing.get_args(member), value, known)
    elif name == "rope":
        for key, theta in known.items():
            if "theta" in key or "base" in key:
                yield Other({"theta": theta}, f"{key} of config.json")
        yield Other({"theta": 10_000.0})


def _numbers(
    number: Number, value: float | None, known: Mapping[str, Any], sizes: Sizes
) -> Iterator[Other]:
    if value is not None:
        yield from (Other(value + step) for step in number.nearby)
    for key, other in known.items():
        is_number = isinstance(other, int | float) and not isinstance(other, bool)
        if is_number and any(word in key for word in number.words):
            yield from _of_config(key, other, number.is_scale)
    yield from map(Other, number.constants)
    if number.is_scale:
        yield from _widths(sizes)


def _choices(choices: Sequence[Any], value: Any, known: Mapping[str, Any]) -> Iterator[Other]:
    """Those that config.json names come first."""
    named = {other: key for key, other in known.items() if isinstance(other, str)}
    for choice in sorted(choices, key=lambda choice: choice not in named):
        if choice != value:
            yield Other(choice, f"{named[choice]} of config.json" if choice in named else "")


def _other_norms(
    node: BlockSpec,
    path: tuple[str, ...],
    registry: BlockRegistry,
    parameters: Collection[str],
) -> Iterator[tuple[tuple[str, ...], Any, Other]]:
    """The other norms, with the fields that both have and the parameters that there are."""
    if registry.block_class(node.block).role != "norm":
        return
    own = node.model_dump()
    leaves = {name.rpartition(".")[2] for name in parameters}
    for name in registry.names("norm"):
        if name != node.block:
            fields = registry[name].model_fields
            kept = {key: value for key, value in own.items() if key in fields}
            has = {key: key in leaves for key in ("bias", "weight") if key in fields}
            yield path, node.block, Other({**kept, **has, "block": name})


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [m for member in typing.get_args(annotation) for m in _members(member)]
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [annotation]


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of config.json, also of what is nested in it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif isinstance(value, int | float | str):
            yield key, value


def _replaced(data: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    return {**data, path[0]: _replaced(data[path[0]], path[1:], value)}
