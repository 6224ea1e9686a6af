"""Tensors that a checkpoint may hold and the model does not need, each with the reason.

The left side of an `ignore:` entry is a whole tensor name in which `*` stands for any text, dots
included; the right side says why nothing is lost. There is no other way to leave a tensor aside.
An entry that leaves nothing aside is worth a note, unless it is `{reason: ..., optional: true}`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assembler.errors import WeightMapError, did_you_mean
from assembler.weights.yaml_marks import Marked

KEYS = ("reason", "optional")


@dataclass(frozen=True)
class Ignore:
    """Names to leave aside, and why."""

    glob: str
    reason: str
    where: str  # file:line
    optional: bool = False  # only some checkpoints hold such tensors

    def matches(self, name: str) -> bool:
        return self._regex.fullmatch(name) is not None

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(".*".join(re.escape(text) for text in self.glob.split("*")))


def parse_ignores(chain: Sequence[Marked]) -> tuple[Ignore, ...]:
    """The `ignore` entries of a map and those it extends, most derived first.

    Null takes an inherited entry out.
    """
    found: dict[str, Ignore | None] = {}
    for marked in reversed(chain):
        for glob, value in (marked.data.get("ignore") or {}).items():
            where = marked.where("ignore", glob)
            if value is None and glob not in found:
                raise WeightMapError(
                    f"{where}: ignore: '{glob}' needs a reason (null takes an inherited entry out)"
                )
            if not glob.strip("*."):
                raise WeightMapError(f"{where}: ignore: '{glob}' would leave everything aside")
            found[glob] = None if value is None else _ignore(glob, value, where)
    return tuple(ignore for ignore in found.values() if ignore is not None)


def _ignore(glob: str, value: Any, where: str) -> Ignore:
    """An entry whose value is the reason, or a mapping with `reason` and `optional`."""
    options = value if isinstance(value, dict) else {"reason": value}
    for key in options:
        if key not in KEYS:
            rest = f"it has {', '.join(KEYS)}.{did_you_mean(key, KEYS)}"
            raise WeightMapError(f"{where}: ignore: unknown option '{key}' of '{glob}'; {rest}")
    reason, optional = options.get("reason"), options.get("optional", False)
    if not isinstance(reason, str) or not reason.strip():
        raise WeightMapError(f"{where}: ignore: the reason for '{glob}' is a text, not {reason!r}")
    if not isinstance(optional, bool):
        raise WeightMapError(
            f"{where}: ignore: 'optional' of '{glob}' is true or false, not {optional!r}"
        )
    return Ignore(glob, reason, where, optional)
