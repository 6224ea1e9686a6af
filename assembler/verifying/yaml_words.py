"""A block's fields and their values, in the words of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from assembler.model.registry import BlockRegistry, BlockSpec


def as_written(entry: BaseModel, path: tuple[str, ...], registry: BlockRegistry) -> tuple[str, ...]:
    """The path in a YAML that gives blocks in their short forms: qk_norm.eps, not qk_norm.norm.eps.

    What a short form cannot say is where it would be in the long one.
    """
    if not path:
        return ()
    inner = getattr(entry, path[0], None)
    rest = as_written(inner, path[1:], registry)
    if len(path) > 1 and isinstance(entry, BlockSpec) and _is_short(entry, path[0], registry):
        return rest
    return (path[0], *rest)


def _is_short(entry: BlockSpec, field: str, registry: BlockRegistry) -> bool:
    """Whether a YAML may have `field` of the block in the place of the block."""
    others = {n: info for n, info in type(entry).model_fields.items() if n not in ("block", field)}
    is_usual = all(getattr(entry, name) == info.default for name, info in others.items())
    return is_usual and registry.short_form(entry.block) == field


def said(value: Any) -> str:
    """A value as a YAML file would hold it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {said(item)}" for key, item in value.items()) + "}"
    return str(value)
