"""Names of tensors for many layers at once: `model.layers.{i}.mlp.experts.{0-7}.w1.weight`.

`{i}` is the layer, `{i+1}` another one in terms of it (as in weight maps); `{0-7}` stands for each
of these numbers. The page expands the same notation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from assembler.model.names import LAYERS
from assembler.weights.fold import format_indices

LAYER = "{i}"
MOST_RUNS = 6  # ranges of layers that are written out
_HOLE = re.compile(r"\{(i(?:[+-]\d+)?|\d[\d,-]*)\}")


def split_layer(name: str) -> tuple[str, int | None]:
    """(`layers.{i}.norm.weight`, 3) of `layers.3.norm.weight`; (name, None) outside the layers."""
    head, _, rest = name.partition(".")
    number, _, tail = rest.partition(".")
    if head == LAYERS and number.isdecimal():
        return f"{LAYERS}.{LAYER}.{tail}", int(number)
    return name, None


def expand(pattern: str, layer: int | None = None) -> Iterator[str]:
    """The names that a pattern stands for, in one layer where it has an `{i}`."""
    texts = _HOLE.split(pattern)
    choices = [_values(hole, layer) for hole in texts[1::2]]
    for values in itertools.product(*choices):
        holes = (*map(str, values), "")
        yield "".join(text + hole for text, hole in zip(texts[::2], holes, strict=True))


def _values(hole: str, layer: int | None) -> Sequence[int]:
    if hole.startswith("i"):
        assert layer is not None, "a pattern with {i} is expanded for a layer"
        return (layer + int(hole[1:] or 0),)
    runs = (run.split("-") for run in hole.split(","))
    return [n for run in runs for n in range(int(run[0]), int(run[-1]) + 1)]


def layers_text(layers: Sequence[int]) -> str:
    """`0-27`, `1-41 step 2` or `0-4,6-10,12`: which layers, as short as can be."""
    steps = {b - a for a, b in pairwise(layers)}
    if len(layers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{layers[0]}-{layers[-1]} step {steps.pop()}"
    runs = format_indices(layers).split(",")
    if len(runs) > MOST_RUNS:
        return f"{','.join(runs[: MOST_RUNS - 1])},…,{runs[-1]}"
    return ",".join(runs)
