"""One thing that is wrong (or worth knowing) about a checkpoint, as the coverage report lists it.

A finding is data, not an exception: reading headers and planning a load collect as many as there
are, and one error or one report shows them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FindingKind = Literal[
    "missing",  # a parameter has no source
    "unclaimed",  # a tensor on disk is neither used nor ignored
    "duplicate",  # one name, several places
    "shape",  # the sizes do not fit
    "dtype",  # the values on disk are of a type that no weight has
    "half_merged",  # a fused parameter has some of its parts only
    "dead_rule",  # a rule of the map applies nowhere, an `ignore` leaves nothing aside
    "unknown_target",  # a rule names a module that the model does not have
    "index",  # a header, or an index of shards, disagrees with the files
    "truncated",  # a file ends before its tensors do
    "tp",  # a tensor-parallel split that does not work out
    "map",  # the map itself cannot be applied
    "values",  # what the weights of norms look like, if asked for
]


@dataclass(frozen=True)
class Finding:
    """What is wrong with `subject` (a tensor, a parameter, a file or a rule), in one line.

    `severity` "note" marks what a reader should know but need not mend, such as files that are
    left aside; everything else stands in the way of loading.
    """

    kind: FindingKind
    subject: str
    message: str
    where: str | None = None  # the file, with its line where there is one
    hint: str = ""  # the nearest name, or what to do
    severity: Literal["error", "note"] = "error"

    def __str__(self) -> str:
        text = f"{self.kind}: {self.subject}: {self.message}"
        if self.where:
            text += f" ({self.where})"
        if self.hint.strip():
            text += f". {self.hint.strip()}"
        return f"note: {text}" if self.severity == "note" else text
