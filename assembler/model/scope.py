"""The names that equations of one place may use, and whether those use and set what they should."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from assembler.model import expressions
from assembler.model.equations import Equation, streams_of
from assembler.model.names import LAYERS


@dataclass(frozen=True)
class Callee:
    """A block as equations see it."""

    takes: int  # streams it is called with
    caches: bool  # it keeps keys and values, of one call a layer
    where: str  # file:line of its entry


@dataclass(frozen=True)
class Scope:
    """The names equations of one place may use."""

    inputs: tuple[str, ...]  # streams that exist before the first line
    outputs: tuple[str, ...]  # streams that must exist after the last
    blocks: Mapping[str, Callee]
    numbers: tuple[str, ...]  # names of scalars
    layers: int = 0  # how many streams `layers(...)` takes and gives; 0: it is no name here


def used_in_vain(
    equations: Sequence[Equation], scope: Scope, called: Collection[str]
) -> Iterator[str]:
    """What is declared or computed and then not used, which would hide a mistake."""
    for name, block in scope.blocks.items():
        if name not in called:
            yield f"{block.where}: block '{name}' is declared but no equation calls it"
    for number, equation in enumerate(equations):
        for name in equation.targets:
            later = _first_mention(name, equations[number + 1 :])
            unused = later == "set" or (later is None and name not in scope.outputs)
            if unused and len(equation.targets) == 1:  # layers(...) gives all it has
                yield (
                    f"{equation.where}: '{name}' is set and then not used "
                    f"(in '{expressions.shortened(equation.text)}')"
                )


def left_undone(
    scope: Scope, called: Collection[str], streams: Collection[str], where: Sequence[str]
) -> Iterator[str]:
    """What all equations together should have set or called; `where` is file:line of each."""
    place = where[-1] if where else "wiring"
    for name in scope.outputs:
        if name not in streams:
            yield f"{place}: no equation up to here sets '{name}'"
    if scope.layers and LAYERS not in called:
        yield f"{place}: no equation up to here calls layers(...)"


def _first_mention(name: str, equations: Sequence[Equation]) -> str | None:
    """Whether `equations` first read a stream or first set it anew; None if they do neither."""
    for equation in equations:
        if name in streams_of(equation.value):
            return "read"
        if name in equation.targets:
            return "set"
    return None
