"""Tensors that a checkpoint may hold and the model does not need, each with the reason.

The left side of an `ignore:` entry is a whole tensor name in which `*` stands for any text, dots
included; the right side says why nothing is lost. There is no other way to leave a tensor aside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from assembler.errors import WeightMapError
from assembler.weights.yaml_marks import Marked


@dataclass(frozen=True)
class Ignore:
    """Names to leave aside, and why."""

    glob: str
    reason: str
    where: str  # file:line

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
        for glob, reason in (marked.data.get("ignore") or {}).items():
            where = marked.where("ignore", glob)
            if reason is None and glob not in found:
                raise WeightMapError(
                    f"{where}: ignore: '{glob}' needs a reason (null takes an inherited entry out)"
                )
            if reason is not None and (not isinstance(reason, str) or not reason.strip()):
                raise WeightMapError(f"{where}: ignore: the reason for '{glob}' is a text")
            if not glob.strip("*."):
                raise WeightMapError(f"{where}: ignore: '{glob}' would leave everything aside")
            found[glob] = None if reason is None else Ignore(glob, reason, where)
    return tuple(ignore for ignore in found.values() if ignore is not None)
