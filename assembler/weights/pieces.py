"""What a plan is made of: copies, constants and the tensors that only have to equal another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from assembler.weights.cuts import Cut, Span
from assembler.weights.ops import Op, Shape, Unsqueeze, shape_after
from assembler.weights.quantized import as_stored
from assembler.weights.recipes import Recipe
from assembler.weights.tensor_info import TensorInfo


@dataclass(frozen=True, slots=True)
class Piece:
    """One copy: part of a tensor on disk, through its ops, into part of a parameter."""

    source: str  # name on disk
    info: TensorInfo
    ops: tuple[Op, ...]
    target: str  # parameter
    part: str  # the part of a fused parameter that it fills, "" where nothing is fused
    target_slice: tuple[Span, ...]  # (): the whole parameter
    shape: Shape  # of what is copied
    nbytes: int  # its share of the tensor's bytes on disk


@dataclass(frozen=True, slots=True)
class Constant:
    """A value for (part of) a parameter that no tensor on disk gives."""

    target: str
    target_slice: tuple[Span, ...]  # (): the whole parameter
    value: float


@dataclass(frozen=True)
class TieCheck:
    """A tensor for a parameter that is tied: accepted only if it equals the other one."""

    source: str
    info: TensorInfo
    target: str  # the tied parameter
    twin: str  # the tensor that fills the parameter it is tied to
    tied_to: str


def make_pieces(recipe: Recipe, infos: Mapping[int, TensorInfo]) -> Iterator[Piece]:
    """The copies of one recipe from the tensors that it found, by index in its stack."""
    if not infos:
        return
    cuts = [_Ready(recipe, cut) for cut in recipe.cuts]
    target, stack = recipe.slot.name, recipe.local_stack
    for n, info in infos.items():
        if recipe.stacked and n not in stack:
            continue  # another rank holds this one
        place = (Span(0, n - stack.start, n - stack.start + 1),) if recipe.stacked else ()
        stored, first = as_stored(info)
        for cut in cuts:
            nbytes = int(info.nbytes * cut.share)
            ops, spans = first + cut.ops, place + cut.span
            yield Piece(info.name, stored, ops, target, cut.part, spans, cut.shape, nbytes)


class _Ready:
    """A cut with everything worked out that is the same for every tensor of a stack."""

    def __init__(self, recipe: Recipe, cut: Cut) -> None:
        shape = shape_after(cut.ops, recipe.shape)
        self.share = math.prod(shape) / max(1, math.prod(recipe.shape))
        self.part = cut.part
        self.ops = (*cut.ops, Unsqueeze()) if recipe.stacked else cut.ops
        self.shape = (1, *shape) if recipe.stacked else shape
        span = cut.span
        if span is not None and recipe.stacked:
            span = Span(span.dim + 1, span.start, span.stop)
        self.span = () if span is None else (span,)
