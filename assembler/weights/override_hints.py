"""Findings that an override of the conf is behind: the checkpoint is not to blame, so say so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from assembler.weights.finding import Finding
from assembler.weights.plan import LoadPlan

_COUNT = "conf.layers.count="
_INDEX = re.compile(r"\.(?:\{?(\d+)[\d,-]*\}?)\.")


def blame_overrides(plan: LoadPlan, overrides: Sequence[str]) -> Iterator[Finding]:
    """The plan's findings; those of layers that only an override asks for name it."""
    counts = [override for override in overrides if override.lstrip("+").startswith(_COUNT)]
    filled = [layer for piece in plan.pieces if (layer := _first_layer(piece.target)) is not None]
    if not counts or not filled:
        yield from plan.findings
        return
    there = max(filled) + 1
    for finding in plan.findings:
        layer = _first_layer(finding.subject)
        if finding.kind == "missing" and layer is not None and layer >= there:
            # It replaces the nearest name: that is a tensor of another layer.
            hint = f"{counts[-1]} asks for more layers than the {there} of the checkpoint."
            finding = replace(finding, hint=hint)
        yield finding


def _first_layer(name: str) -> int | None:
    """The first index in a name, folded (`layers.{3-8}.norm.weight`) or not."""
    match = _INDEX.search(f"{name}.")
    return None if match is None else int(match[1])
