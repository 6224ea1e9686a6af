"""Drafts as YAML text: short mappings on one line, and a comment on every line that is a guess."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

_WIDTH = 96
_MARK = "guess: "
KeyPath = tuple[str, ...]


def yaml_text(data: Mapping[str, Any], why: Mapping[KeyPath, str]) -> str:
    """`data` as YAML; `why` gives the comment of the value at a key path."""
    return "\n".join(_lines(data, (), why, 0)) + "\n"


def comment(text: str) -> list[str]:
    """A text as lines of comment."""
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2)]


def listed(items: Iterable[str]) -> list[str]:
    """Items as an indented list of comment lines, each on its own."""
    return [f"#   {item}" for item in items]


def _lines(
    data: Mapping[str, Any], path: KeyPath, why: Mapping[KeyPath, str], depth: int
) -> Iterable[str]:
    indent = "  " * depth
    for key, value in data.items():
        here = (*path, str(key))
        mark = _mark(here, why)
        name = f"{indent}{_scalar(key)}:"
        flow = _flow(value)
        nested = (
            isinstance(value, Mapping) and value and not _is_short(here, value, name, flow, why)
        )
        if nested:
            yield name + mark
            yield from _lines(value, here, why, depth + 1)
        elif isinstance(value, list) and _has_equations(value):
            yield name + mark
            yield from (f"{indent}  - {_scalar(item)}" for item in value)
        else:
            yield f"{name} {flow}{mark or _inner_mark(here, why)}"


def _is_short(
    path: KeyPath, value: Mapping[str, Any], name: str, flow: str, why: Mapping[KeyPath, str]
) -> bool:
    """Whether a mapping may stand on one line: with at most one reason for what is in it."""
    reasons = {why[p] for p in why if p[: len(path)] == path}
    if len(name) + len(flow) > _WIDTH or len(reasons) > 1:
        return False
    return not any(isinstance(item, Mapping | list) and item for item in value.values()) or (
        path in why or "from" in value
    )


def _has_equations(items: list[Any]) -> bool:
    return any(isinstance(item, str) and " = " in item for item in items)


def _mark(path: KeyPath, why: Mapping[KeyPath, str]) -> str:
    reason = why.get(path)
    return f"  # {_MARK}{reason}" if reason else ""


def _inner_mark(path: KeyPath, why: Mapping[KeyPath, str]) -> str:
    """The reason of something inside of a value that stands on one line."""
    return next((f"  # {_MARK}{r}" for p, r in why.items() if r and p[: len(path)] == path), "")


def _scalar(value: Any) -> str:
    return _flow(value)


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("...").strip()
