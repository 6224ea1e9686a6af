"""How the names of a checkpoint differ from those that a map writes: a prefix, or other roots.

One model is saved under many names: alone, inside a multimodal wrapper, with or without the
wrapper's head. `prefixes:` of a map lists what it accepts; the planner takes the one that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assembler.errors import WeightMapError, did_you_mean
from assembler.weights.map_rules import Rule
from assembler.weights.yaml_marks import Marked


@dataclass(frozen=True)
class Naming:
    """Either a text before every name, or roots that are replaced ("" drops a root)."""

    prefix: str = ""
    roots: tuple[tuple[str, str], ...] = ()  # (in the map, on disk); the longest first

    def on_disk(self, name: str) -> str:
        """The name that the checkpoint has for `name` of the map. Other roots stay as they are."""
        if not self.roots:
            return self.prefix + name
        for own, theirs in self.roots:
            if name == own:
                return theirs or name
            if name.startswith(f"{own}."):
                rest = name[len(own) + 1 :]
                return f"{theirs}.{rest}" if theirs else rest
        return name

    def in_map(self, name: str) -> str:
        """The way back from `on_disk`; a name that it cannot give stays as it is."""
        if not self.roots:
            return name.removeprefix(self.prefix)
        for own, theirs in sorted(self.roots, key=lambda pair: -len(pair[1])):
            if name == theirs or (theirs and name.startswith(f"{theirs}.")):
                return own + name[len(theirs) :]
            if not theirs:
                return f"{own}.{name}"
        return name

    def __str__(self) -> str:
        if not self.roots:
            return self.prefix
        return ", ".join(f"{own} → {theirs or 'nothing'}" for own, theirs in self.roots)


def parse_prefixes(chain: Sequence[Marked], rules: Sequence[Rule]) -> tuple[Naming, ...]:
    """The `prefixes` of the most derived map that has any.

    Raises WeightMapError for a prefix without its dot, and for a root that no source has.
    """
    for marked in chain:
        entries = marked.data.get("prefixes")
        if entries is None:
            continue
        own_rules = rules if marked is chain[0] else ()  # a derived map may have dropped some
        read = (_read(e, marked.where("prefixes", n), own_rules) for n, e in enumerate(entries))
        return tuple(read) or (Naming(),)
    return (Naming(),)


def _read(entry: Any, where: str, rules: Sequence[Rule]) -> Naming:
    if isinstance(entry, dict) and entry:
        for own, theirs in entry.items():
            _check_root(own, theirs, where)
        _check_known(entry, where, rules)
        return Naming(roots=tuple(sorted(entry.items(), key=lambda pair: -len(pair[0]))))
    if isinstance(entry, str) and (not entry or entry.endswith(".")):
        return Naming(entry)
    raise WeightMapError(
        f"{where}: a prefix is '', ends with '.', or is a mapping of roots such as "
        f"{{model: model.language_model}}, not {entry!r}"
    )


def _check_root(own: Any, theirs: Any, where: str) -> None:
    good = isinstance(own, str) and own and isinstance(theirs, str)
    if not good or any(set("{}*") & set(s) or s.strip(".") != s for s in (own, theirs)):
        raise WeightMapError(
            f"{where}: a root is the beginning of names, without its last dot, and becomes another "
            f"or '', not {own!r}: {theirs!r}"
        )


def _check_known(roots: dict[str, str], where: str, rules: Sequence[Rule]) -> None:
    if not rules:
        return
    sources = {s.pattern.text for rule in rules for way in rule.ways for s in way.sources}
    for own in roots:
        if not any(source == own or source.startswith(f"{own}.") for source in sources):
            hint = did_you_mean(own, {source.partition(".")[0] for source in sources})
            raise WeightMapError(f"{where}: no source of the map begins with '{own}'.{hint}")
