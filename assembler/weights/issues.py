"""Findings before they are folded: the same problem in thirty layers is one line of the report."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from assembler.weights.finding import Finding, FindingKind
from assembler.weights.fold import Form, blank_indices, fold_names, fold_text


@dataclass(frozen=True)
class Issue:
    """One problem with one subject.

    `message` and `hint` refer to `names` as {0}, {1}, ...: what differs between the layers.
    """

    kind: FindingKind
    subject: str
    message: str
    names: tuple[str, ...] = ()
    where: str | None = None
    hint: str = ""
    severity: Literal["error", "note"] = "error"

    @property
    def form(self) -> tuple[Issue, Form, tuple[Form, ...]]:
        """Equal for issues that differ in indices only."""
        forms = tuple(blank_indices(name)[0] for name in self.names)
        return replace(self, subject="", names=()), blank_indices(self.subject)[0], forms

    def finding(self) -> Finding:
        return Finding(
            self.kind,
            self.subject,
            self._named(self.message),
            self.where,
            self._named(self.hint),
            self.severity,
        )

    def _named(self, text: str) -> str:
        """`text` with {0}, {1}, ... replaced; every other brace stays as it is."""

        def name(match: re.Match[str]) -> str:
            place = int(match[1])
            return self.names[place] if place < len(self.names) else match[0]

        return re.sub(r"\{(\d+)\}", name, text)


def fold_issues(issues: Iterable[Issue]) -> list[Issue]:
    """Merge the issues that differ only in indices, in the order of first appearance."""
    groups: dict[tuple, dict[str, Issue]] = {}
    for issue in issues:
        groups.setdefault(issue.form, {})[issue.subject] = issue
    return [
        replace(members[fold.names[0]], subject=fold.text, names=_fold_columns(members, fold.names))
        for members in groups.values()
        for fold in fold_names(members)
    ]


def _fold_columns(members: dict[str, Issue], subjects: tuple[str, ...]) -> tuple[str, ...]:
    columns = zip(*(members[subject].names for subject in subjects), strict=True)
    return tuple(fold_text(column) for column in columns)
