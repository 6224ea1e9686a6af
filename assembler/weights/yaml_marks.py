"""YAML as plain data that still knows on which line each key stood.

Scalars follow the YAML 1.2 core schema: only `true`/`false` are booleans and `012` is twelve, where
YAML 1.1 turns `on`, `yes` and `12:30` into something nobody wrote. Keys are always text. A key
given twice, a foreign tag and a syntax error are refused with file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from assembler.errors import AssemblerError, WeightMapError

_TAG = "tag:yaml.org,2002:"
_SHALLOW = 1000  # levels that fit into any thread's stack, 0.4 kB each


@dataclass(frozen=True)
class Marked:
    """The data of one YAML file and the line of every key and list item in it."""

    data: Any
    path: Path
    lines: Mapping[tuple[str, ...], int]

    def line(self, *keys: str | int) -> int:
        """The line (from 1) of the value under `keys`, or of the nearest parent that has one."""
        path = tuple(str(key) for key in keys)
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def where(self, *keys: str | int) -> str:
        """`file:line` of the value under `keys`, as error messages begin."""
        return f"{display_path(self.path)}:{self.line(*keys)}"


def load_marked(path: str | Path, error: type[AssemblerError] = WeightMapError) -> Marked:
    """Read a YAML file.

    Raises `error`, with file and line, for what is no YAML, a duplicate key, a key that is not a
    scalar, a tag, an alias inside itself and a file that cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{display_path(path)}: cannot be read: {problem}") from problem
    return parse_marked(text, path, error)


def parse_marked(
    text: str, path: str | Path, error: type[AssemblerError] = WeightMapError
) -> Marked:
    """`load_marked` for a text already in memory; `path` names it in messages."""
    path = Path(path)
    try:
        node = _compose(text)
        walk = _Walk(path, error)
        data = None if node is None else walk.value(node, ())
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        what = problem.problem or problem.context or "not YAML"
        if re.search(r"[\[{].*\{\S+\}", "".join(text.splitlines()[line - 1 : line])):
            what += " (inside [...] or {...}, names with braces need quotes)"
        raise error(f"{display_path(path)}:{line}: not valid YAML: {what}") from None
    except yaml.YAMLError as problem:  # characters that YAML does not allow
        raise error(f"{display_path(path)}: not valid YAML: {problem}") from None
    except RecursionError:
        raise error(f"{display_path(path)}: nested too deeply") from None
    return Marked(data, path, {(): 1, **walk.lines})


def _compose(text: str) -> yaml.Node | None:
    """The node tree of a text; libyaml makes it several times as fast where PyYAML has it.

    Its tree is the same, its words for errors are not, and it is a little stricter: Python has the
    last word. It also nests on the C stack without a limit, so what might nest deeply is kept away.
    """
    deepest = max(map(len, text.splitlines()), default=0) + text.count("[") + text.count("{")
    if deepest < _SHALLOW:
        with suppress(yaml.YAMLError):
            return yaml.compose(text, Loader=_FastLoader)
    return yaml.compose(text, Loader=_Loader)


def display_path(path: str | Path) -> str:
    """`path` relative to the current folder where it lies inside it, whole otherwise."""
    text = os.path.abspath(path)
    here = os.getcwd() + os.sep
    return text[len(here) :] if text.startswith(here) else text


class _Loader(yaml.SafeLoader):
    """Composes nodes with the implicit types of YAML 1.2; nothing is ever constructed by it."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_IMPLICIT = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
for _name, _pattern, _first in _IMPLICIT:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """`_Loader` over libyaml, if PyYAML was built with it."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _number(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


_SCALARS = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _number,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
    "merge": str,
}


class _Walk:
    """Turns composed nodes into plain data, noting lines on the way."""

    def __init__(self, path: Path, error: type[AssemblerError]) -> None:
        self.path, self.error = path, error
        self.lines: dict[tuple[str, ...], int] = {}
        self.open: set[int] = set()  # nodes being walked: an alias to one of them is a cycle

    def value(self, node: yaml.Node, keys: tuple[str, ...]) -> Any:
        self.lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            self.refuse(node, f"the tag '{node.tag}' is not allowed")
        if id(node) in self.open:
            self.refuse(node, "an alias refers to what contains it")
        self.open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            data: Any = self.mapping(node, keys)
        else:
            data = [self.value(item, (*keys, str(n))) for n, item in enumerate(node.value)]
        self.open.discard(id(node))
        return data

    def mapping(self, node: yaml.MappingNode, keys: tuple[str, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(key_node, "a key must be a plain name (quote it if it has braces)")
            if key_node.tag == _TAG + "merge":
                merged.append(value_node)
                continue
            key = key_node.value
            if key in data:
                first = self.lines[(*keys, key)]
                self.refuse(key_node, f"the key '{key}' is already given on line {first}")
            self.lines[(*keys, key)] = key_node.start_mark.line + 1
            data[key] = self.value(value_node, (*keys, key))
        for source in self.merge_sources(merged):
            for key, value in self.value(source, keys).items():
                data.setdefault(key, value)
        return data

    def merge_sources(self, nodes: list[yaml.Node]) -> Iterator[yaml.MappingNode]:
        """The mappings that `<<` names; keys written out win over theirs."""
        for node in nodes:
            for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
                if not isinstance(item, yaml.MappingNode):
                    self.refuse(item, "'<<' takes a mapping or a list of mappings")
                yield item

    def scalar(self, node: yaml.ScalarNode) -> Any:
        convert = _SCALARS.get(node.tag.removeprefix(_TAG))
        if convert is None:
            self.refuse(node, f"the tag '{node.tag}' is not allowed")
        try:
            return convert(node.value)
        except ValueError:
            self.refuse(node, f"'{node.value}' is no {node.tag.removeprefix(_TAG)}")

    def refuse(self, node: yaml.Node, message: str) -> NoReturn:
        raise self.error(f"{display_path(self.path)}:{node.start_mark.line + 1}: {message}")
