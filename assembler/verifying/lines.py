"""The lines of a conf behind a block or a result: its entry, and the equation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from assembler.model.places import block_places, located_wiring
from assembler.model.registry import BlockSpec
from assembler.model.spec import ModelSpec


@dataclass(frozen=True)
class BlockLine:
    """Where a block and the equation that calls it were written."""

    entry: BlockSpec
    where: str  # of the shared block, then of the variants that change it
    equation: str
    equation_where: str


@dataclass(frozen=True)
class ResultLine:
    """The equation that a layer's or the model's result comes from."""

    equation: str
    where: str


def block_line(spec: ModelSpec, path: str) -> BlockLine:
    """Of a block by its path, `layers.0.attn` or `lm_head`."""
    stretch, _, name = path.rpartition(".")
    kind = _kind(spec, stretch)
    entries = spec.blocks if kind is None else spec.kinds[kind].blocks
    equations = list(zip(*located_wiring(spec, kind), strict=True))
    called = re.compile(rf"\b{re.escape(name)}\s*\(")
    equation, where = next((e for e in equations if called.search(e[0])), ("", ""))
    written = ", ".join(dict.fromkeys(reversed(block_places(spec, kind, name))))
    return BlockLine(entries[name], written, equation, where)


def result_line(spec: ModelSpec, stretch: str, before_layers: bool = False) -> ResultLine:
    """Of what a layer (its path; "": the model) ends with, or of what the layers begin with."""
    kind = _kind(spec, stretch)
    equations = list(zip(*located_wiring(spec, kind), strict=True))
    if before_layers:
        equations = [e for e in equations if re.search(r"\blayers\s*\(", e[0])] or equations
    text, where = equations[-1]
    return ResultLine(text, where)


def _kind(spec: ModelSpec, stretch: str) -> str | None:
    """The kind of the layer at `layers.{i}`; None of the model."""
    return spec.layer_kinds[int(stretch.partition(".")[2])] if stretch else None
