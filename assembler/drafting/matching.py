"""Whether a conf that is there already is for the checkpoints that a draft would be for.

A checkpoint that two confs of one folder match belongs to neither: every command without `conf=`
refuses it. A draft that takes the place of a conf that works would be as bad. So `matches` of a
draft is left to whoever knows which of the two is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assembler.model.conf_files import matches_of

_KEYS = ("architectures", "model_type")


def draft_matches(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoints that a draft is for: those whose config.json names the same."""
    return {key: config[key] for key in _KEYS if config.get(key) is not None}


def conf_for_the_same(
    matches: Mapping[str, Any], conf: Path, roots: Sequence[Path]
) -> tuple[str, str] | None:
    """A conf that already matches one of the names in `matches`: its name and its file:line.

    Args:
        matches: what the draft would match.
        conf: the file of the draft, which is not in its own way when it is written over.
        roots: the folders that hold conf/, best first; that of the draft among them.

    Raises:
        SpecError: a conf of a user cannot be read, or its `matches` is no mapping.
    """
    wanted = {key: _names(value) for key, value in matches.items()}
    everything = set().union(*wanted.values()) if wanted else set()
    for other, theirs in matches_of(roots, mentioning=everything):
        if other.path.resolve() == conf.resolve():
            continue
        if any(names & _names(theirs.get(key)) for key, names in wanted.items()):
            return other.name, other.where(("matches",))
    return None


def _names(value: Any) -> set[str]:
    """One name or a list of names as a set."""
    return {n for n in (value if isinstance(value, list) else [value]) if isinstance(n, str)}
