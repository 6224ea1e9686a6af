"""Tensor names with named wildcards: `model.layers.{i}.mlp.experts.{e}.w1`.

A wildcard stands for an index. On the left of a rule it is a whole path segment; on the right it
may be part of one and do arithmetic (`{i+1}`, `{2*i}`, `{2*i+1}`). There are no regular expressions
and no substring matches in a map: a pattern matches a whole name or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from assembler.errors import WeightMapError

T = TypeVar("T")

_BRACES = re.compile(r"\{([^{}]*)\}")
_INDEX = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)(?:\*(\d+))?(?:([+-])(\d+))?")


@dataclass(frozen=True)
class Wildcard:
    """The index `scale * name + offset`."""

    name: str
    scale: int = 1
    offset: int = 0

    @property
    def plain(self) -> bool:
        return (self.scale, self.offset) == (1, 0)

    def value(self, values: Mapping[str, int]) -> int:
        return self.scale * values[self.name] + self.offset

    def solve(self, index: int) -> int | None:
        """The value of `name` that gives `index`, or None if none does."""
        value, rest = divmod(index - self.offset, self.scale)
        return value if rest == 0 and value >= 0 else None


@dataclass(frozen=True)
class Pattern:
    """A name with wildcards. `pieces` are its literal texts and wildcards, in order."""

    text: str
    pieces: tuple[str | Wildcard, ...]

    @cached_property
    def wildcards(self) -> tuple[Wildcard, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Wildcard))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The wildcard names, each once, in order of appearance."""
        return tuple(dict.fromkeys(wildcard.name for wildcard in self.wildcards))

    @cached_property
    def form(self) -> str:
        """The text with every wildcard blanked: equal forms match equal names."""
        return "".join(p if isinstance(p, str) else "{}" for p in self.pieces)

    def fill(self, values: Mapping[str, int]) -> str:
        """The name with every wildcard replaced by its index."""
        return "".join(p if isinstance(p, str) else str(p.value(values)) for p in self.pieces)

    def fill_known(self, values: Mapping[str, int]) -> str:
        """`fill` that leaves the wildcards without a value in place."""
        texts = []
        for piece in self.pieces:
            if isinstance(piece, str):
                texts.append(piece)
            elif piece.name in values:
                texts.append(str(piece.value(values)))
            else:
                texts.append(f"{{{piece.name}}}")
        return "".join(texts)

    def match(self, name: str) -> dict[str, int] | None:
        """The value of every wildcard under which `fill` gives `name`, or None."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        values: dict[str, int] = {}
        for wildcard, text in zip(self.wildcards, found.groups(), strict=True):
            value = wildcard.solve(int(text))
            if value is None or values.setdefault(wildcard.name, value) != value:
                return None
        return values

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts = (re.escape(p) if isinstance(p, str) else r"(0|[1-9]\d*)" for p in self.pieces)
        return re.compile("".join(parts))

    def __str__(self) -> str:
        return self.text


def parse_pattern(text: str, where: str) -> Pattern:
    """Parse a name with wildcards; `where` (file:line) begins the error messages."""
    pieces: list[str | Wildcard] = []
    end = 0
    for match in _BRACES.finditer(text):
        pieces += [text[end : match.start()], _wildcard(match.group(1), text, where)]
        end = match.end()
    pieces.append(text[end:])
    if any("{" in p or "}" in p for p in pieces if isinstance(p, str)):
        raise WeightMapError(f"{where}: unbalanced braces in '{text}'")
    if any(not segment for segment in text.split(".")):
        raise WeightMapError(f"{where}: '{text}' has an empty path segment")
    return Pattern(text, tuple(p for p in pieces if p != ""))


def parse_target(text: str, where: str) -> Pattern:
    """`parse_pattern` for the left side: wildcards are plain, whole segments and named once."""
    pattern = parse_pattern(text, where)
    for segment in text.split("."):
        if "{" in segment and not re.fullmatch(r"\{\s*[A-Za-z_]\w*\s*\}", segment):
            raise WeightMapError(
                f"{where}: on the left a wildcard is a whole segment without arithmetic, "
                f"not '{segment}' in '{text}'"
            )
    if len(pattern.names) < len(pattern.wildcards):
        raise WeightMapError(f"{where}: '{text}' uses one wildcard twice; name them differently")
    return pattern


def _wildcard(inner: str, text: str, where: str) -> Wildcard:
    match = _INDEX.fullmatch("".join(inner.split()))
    if match is None or (match[1] and match[3]):
        raise WeightMapError(
            f"{where}: '{{{inner}}}' in '{text}' is no wildcard: write a name with optional "
            "arithmetic, e.g. {i}, {i+1}, {2*i+1}"
        )
    scale = int(match[1] or match[3] or 1)
    if scale == 0:
        raise WeightMapError(f"{where}: '{{{inner}}}' in '{text}' is the same for every index")
    offset = int(match[5] or 0) * (-1 if match[4] == "-" else 1)
    return Wildcard(match[2], scale, offset)


class PatternTree(Generic[T]):
    """Finds the patterns that match a path without trying each of them.

    A tree over path segments: a literal segment is followed by name, an index also through the
    wildcard branch, so a look-up costs the depth of the path whatever the number of patterns.
    """

    def __init__(self) -> None:
        self._root: dict[str, dict] = {}

    def add(self, pattern: Pattern, value: T) -> None:
        node = self._root
        for segment in pattern.form.split("."):
            node = node.setdefault(segment, {})
        node.setdefault("", []).append(value)  # "" is no segment: values live there

    def find(self, path: str) -> list[T]:
        """Every value whose pattern has the form of the whole `path`."""
        return list(self._walk(self._root, path.split("."), 0))

    def _walk(self, node: dict, segments: list[str], at: int) -> Iterator[T]:
        if at == len(segments):
            yield from node.get("", ())
            return
        segment = segments[at]
        if segment in node:
            yield from self._walk(node[segment], segments, at + 1)
        if "{}" in node and segment.isdecimal():
            yield from self._walk(node["{}"], segments, at + 1)
