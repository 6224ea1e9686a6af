"""Rules that an extending map takes back with null, named where they are missed.

A key with nothing after it is null as well, so a scope that was left empty takes back every rule
below it: most likely a mistake, and hard to see.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from assembler.errors import WeightMapError
from assembler.weights.finding import Finding
from assembler.weights.weight_map import WeightMap
from assembler.weights.write_back import RuleLookup
from assembler.weights.yaml_marks import Marked, load_marked


@dataclass(frozen=True)
class TakenBack:
    """A target whose inherited rules a null deletes."""

    target: str  # as written, with the scopes around it
    where: str  # file:line
    empty: bool  # nothing is written there, not even null

    def covers(self, name: str) -> bool:
        """Whether `name` (indices blanked) is the target or lies below it."""
        form = _blank(self.target)
        return name == form or name.startswith(f"{form}.")

    def __str__(self) -> str:
        if self.empty:
            return (
                f"Nothing stands after '{self.target}:' at {self.where}, which takes back every "
                "inherited rule there: fill it or delete the line."
            )
        return f"null takes back '{self.target}' at {self.where}."


def blame_taken_back(findings: Iterable[Finding], weight_map: WeightMap) -> Iterator[Finding]:
    """The findings; a parameter without a rule names the null that took its rule back."""
    known: list[TakenBack] | None = None
    rules = RuleLookup(weight_map)
    for finding in findings:
        if finding.kind == "missing":
            name = _blank(finding.subject)
            if not rules.all(name.replace("{}", "0")):
                known = list(taken_back(weight_map)) if known is None else known
                causes = [each for each in known if each.covers(name)]
                if causes:
                    finding = replace(finding, hint=str(causes[0]))
        yield finding


def taken_back(weight_map: WeightMap) -> Iterator[TakenBack]:
    """Every null under `weights` of a map and those it extends."""
    for file in weight_map.files:
        marked = load_marked(file, WeightMapError)
        yield from _nulls(marked, ("weights",), marked.data.get("weights") or {})


def _nulls(marked: Marked, keys: tuple[str, ...], scope: Mapping[str, Any]) -> Iterator[TakenBack]:
    for key, value in scope.items():
        here = (*keys, key)
        if value is None:
            where = marked.where(*here)
            yield TakenBack(".".join(here[1:]), where, _is_empty(marked, where))
        elif isinstance(value, dict):
            yield from _nulls(marked, here, value)


def _is_empty(marked: Marked, where: str) -> bool:
    """Whether the line ends after its key."""
    number = where.rpartition(":")[2]
    lines = marked.path.read_text("utf-8").splitlines()
    line = lines[int(number) - 1] if number.isdecimal() else ""
    return line.partition(" #")[0].rstrip().endswith(":")


def _blank(name: str) -> str:
    """`layers.{}.attn` for `layers.3.attn`, `layers.{0-2}.attn` and `layers.{i}.attn`."""
    return re.sub(r"(?<=\.)(\d+|\{[^{}]*\})(?=\.|$)", "{}", name)
