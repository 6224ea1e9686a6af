"""Turning pydantic's findings into messages of the model language.

Each message says where the value was set, what is wrong and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from assembler.errors import did_you_mean
from assembler.model.names import PER_LAYER
from assembler.model.registry import BLOCK_TAG, PLAIN_TAG, BlockRegistry

KeyPath = tuple[str | int, ...]
Where = Callable[[KeyPath], str]


def dotted(key: KeyPath) -> str:
    """("layers", "wiring", 0) -> "layers.wiring[0]"."""
    text = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in key)
    return text.removeprefix(".")


def field_errors(
    error: ValidationError,
    model: type[BaseModel],
    registry: BlockRegistry,
    key_of: Callable[[KeyPath], KeyPath],
    where: Where,
) -> list[str]:
    """One line for each finding of `error`, raised while validating `model`.

    `key_of` turns a path inside the model into one inside the YAML file.
    """
    lines = []
    for finding in error.errors():
        # The tag of a nested block is part of pydantic's path but not of the YAML's.
        tags = (*registry, PLAIN_TAG, BLOCK_TAG)
        location = tuple(k for k in finding["loc"] if k not in tags)
        key = key_of(location)
        owner = _owner(finding["loc"], model, registry)
        lines.append(
            f"{where(key)}: {dotted(key)}: {_message(finding, owner)}{_near_per_layer(finding)}"
        )
    return lines


def unknown_block(name: Any, registry: BlockRegistry) -> str:
    """The message for a `block:` that names none."""
    names = registry.names()
    return f"unknown block '{name}'.{did_you_mean(str(name), names)} Known: {', '.join(names)}"


def missing_block(entry: str, others: Iterable[str], registry: BlockRegistry) -> str:
    """The message for an entry without `block:`; perhaps one of the `others` was meant."""
    hint = did_you_mean(entry, others)
    return f"needs `block:`, one of {', '.join(registry.names())}.{hint}"


def _owner(loc: Iterable[Any], model: type[BaseModel], registry: BlockRegistry) -> type[BaseModel]:
    """The model whose field a finding is about (the innermost one on its path)."""
    owner = model
    for key in list(loc)[:-1]:
        if key in registry:
            owner = registry[key]
            continue
        field = owner.model_fields.get(key) if isinstance(key, str) else None
        inner = field and _model_in(field.annotation)
        owner = inner or owner
    return owner


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside `Model`, `Model | None` or `dict[str, Model]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """All the pydantic models among the alternatives of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)


def _nearest(field: str, owner: type[BaseModel], known: list[str]) -> str:
    """Did you mean another field, or one inside of it: rope.theta for rope_theta?"""
    nested = {
        f"{name}.{inner}"
        for name, info in owner.model_fields.items()
        for model in _models_in(info.annotation)
        for inner in model.model_fields
    }
    inside = [name for name in nested if name.replace(".", "_") == field]
    return did_you_mean(field, inside or known)


def _message(finding: dict[str, Any], owner: type[BaseModel]) -> str:
    given, context = finding.get("input"), finding.get("ctx", {})
    field = finding["loc"][-1] if finding["loc"] else ""
    match finding["type"]:
        case "extra_forbidden":
            known = [name for name in owner.model_fields if name != "block"]
            title = owner.__name__.removesuffix("Document")
            return (
                f"unknown field '{field}' of {title}.{_nearest(str(field), owner, known)} "
                f"Known: {', '.join(known) or 'none'}"
            )
        case "missing":
            info = owner.model_fields.get(str(field))
            meaning = f" ({info.description.rstrip('.')})" if info and info.description else ""
            return f"required, but not given{meaning}"
        case "literal_error":
            names = re.findall(r"'([^']*)'", context["expected"])
            hint = did_you_mean(str(given), names)
            return f"{shown(given)} is none of {context['expected']}.{hint}"
        case "union_tag_invalid":
            names = re.findall(r"'([^']*)'", context["expected_tags"])
            hint = did_you_mean(context["tag"], names)
            return f"unknown block '{context['tag']}' here.{hint} Known: {', '.join(names)}"
        case "union_tag_not_found":
            return "a nested block needs `block:`"
        case "value_error":
            return str(context["error"])
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping (got {shown(given)})"
        case "tuple_type" | "list_type":
            return f"must be a list (got {shown(given)})"
        case "string_type":
            return f"must be text (got {shown(given)})"
    return f"{finding['msg'][0].lower()}{finding['msg'][1:]} (got {shown(given)})"


def _near_per_layer(finding: Mapping[str, Any]) -> str:
    """Did you mean `per_layer`? For a value that is a mapping of one key that looks like it."""
    given = finding.get("input")
    if not isinstance(given, Mapping) or len(given) != 1 or PER_LAYER in given:
        return ""
    return did_you_mean(str(next(iter(given))), [PER_LAYER])


def shown(value: Any) -> str:
    """A value as YAML spells it, cut where it is long."""
    special = {None: "null", True: "true", False: "false"}
    text = special[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
