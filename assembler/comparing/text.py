"""The difference of two architectures in words, for a terminal or as Markdown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from assembler.comparing.conf_changes import Change, Wiring
from assembler.comparing.difference import Difference

_SECTIONS = (
    ("Blocks and fields", ("added", "dropped", "changed")),
    ("The same, read in another way from config.json", ("read",)),
)


def text_lines(difference: Difference) -> Iterator[str]:
    """One line a difference, equations as a diff; Markdown that also reads well in a terminal."""
    new, old = difference.new, difference.old
    yield f"# {new} and {old}"
    if difference.is_empty:
        yield from ("", f"{new} and {old} are the same model, with the same weight map.")
    for title, kinds in _SECTIONS:
        changes = [change for change in difference.blocks if change.kind in kinds]
        yield from _section(title, _changes(changes, new, old))
    yield from _section("Wiring", _wirings(difference.wiring, new, old))
    yield from _section("Weights on disk", _changes(difference.weights, new, old))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0:
            yield from ("", f"## {title}", "")
        yield line


def _changes(changes: Sequence[Change], new: str, old: str) -> Iterator[str]:
    """One line for all places where the same is different."""
    places: dict[Change, list[str]] = {}
    for change in changes:
        places.setdefault(replace(change, where=""), []).append(f"`{change.where}`")
    for change, where in places.items():
        says = f" *{change.meaning}*" if change.meaning else ""
        names = ", ".join(where)
        if change.kind == "added":
            yield f"- {names}: `{change.new}`; nothing in {old}.{says}"
        elif change.kind == "dropped":
            yield f"- {names}: nothing; `{change.old}` in {old}.{says}"
        else:
            yield f"- {names}: `{change.new}` instead of `{change.old}`.{says}"


def _wirings(wirings: Sequence[Wiring], new: str, old: str) -> Iterator[str]:
    for wiring in wirings:
        yield f"{wiring.where}:"
        yield "```diff"
        yield from wiring_diff(wiring, new, old)
        yield "```"


def wiring_diff(wiring: Wiring, new: str, old: str) -> Iterator[str]:
    """The equations as a unified diff from the old to the new, all of them shown."""
    lines = difflib.unified_diff(
        wiring.old, wiring.new, fromfile=old, tofile=new, lineterm="", n=len(wiring.old)
    )
    return (line for line in lines if not line.startswith("@@"))
