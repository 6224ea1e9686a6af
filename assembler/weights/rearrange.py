"""Reshapes and permutations, written as in einops: `(e i) h -> e h i`.

The right side is the tensor as the rest of the rule sees it, whose sizes the model gives; the left
side is the tensor on disk. A group in brackets is one dim, the axis that varies fastest last in it.
Axes that neither the model nor the rest of a group determines are given in `sizes`. (Notation:
Rogozhnikov, "Einops", ICLR 2022.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from assembler.weights.ops import Op, Shape

Axes = tuple[tuple[str, ...], ...]  # for each dim the axes it is made of

_DIM = re.compile(r"\(([^()]*)\)|([^\s()]+)")


@dataclass(frozen=True)
class Rearrangement:
    """A pattern before the sizes are known."""

    text: str
    disk: Axes
    model: Axes
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def op(self, shape: Shape) -> Rearrange:
        """The op whose result has `shape`. Raises ValueError, saying why, if there is none."""
        if len(shape) != len(self.model):
            raise ValueError(
                f"`rearrange: {self.text}` gives {len(self.model)} dims, and {list(shape)} is "
                f"wanted: write a rule for each parameter of the module"
            )
        sizes = dict(self.sizes)
        for axes, size in zip(self.model, shape, strict=True):
            self._solve(axes, size, sizes)
        names = [name for axes in self.disk for name in axes]
        return Rearrange(self.text, self.disk, self.model, tuple((n, sizes[n]) for n in names))

    def _solve(self, axes: tuple[str, ...], size: int, sizes: dict[str, int]) -> None:
        """Work out the one axis of a dim that has no size yet, and check the product."""
        unknown = [name for name in axes if name not in sizes]
        if len(unknown) > 1:
            raise ValueError(
                f"`rearrange: {self.text}` leaves the sizes of {', '.join(unknown)} open: "
                "give all but one of them in `sizes`"
            )
        known = math.prod(sizes[name] for name in axes if name in sizes)
        if unknown:
            sizes[unknown[0]] = size // known
            known *= size // known
        if known != size:
            listed = " × ".join(f"{name} {sizes[name]}" for name in axes)
            raise ValueError(f"`rearrange: {self.text}`: {listed or '()'} is not {size}")


def parse_rearrangement(text: str, sizes: Mapping[str, int]) -> Rearrangement:
    """Read a pattern. Raises ValueError, saying what is wrong with it."""
    left, arrow, right = text.partition("->")
    if not arrow or "->" in right:
        raise ValueError(f"'{text}' is no pattern: write e.g. '(e i) h -> e h i'")
    disk, model = _axes(left, text), _axes(right, text)
    names = [[name for axes in side for name in axes] for side in (disk, model)]
    for side in names:
        twice = [name for name in side if side.count(name) > 1]
        if twice:
            raise ValueError(f"'{text}' has the axis '{twice[0]}' twice on one side")
    odd = set(names[0]) ^ set(names[1])
    if odd:
        raise ValueError(f"'{text}' has {', '.join(sorted(odd))} on one side only")
    strange = sorted(set(sizes) - set(names[0]))
    if strange:
        raise ValueError(f"'{text}' has no axis {', '.join(strange)}, which `sizes` names")
    tidy = " -> ".join(" ".join(half.split()) for half in (left, right))
    return Rearrangement(tidy, disk, model, dict(sizes))


def _axes(side: str, text: str) -> Axes:
    """The dims of one side; `1` stands for a dim of one element and has no axis."""
    if _DIM.sub("", side).strip():
        raise ValueError(f"'{text}' has brackets that do not match")
    dims = []
    for group, single in _DIM.findall(side):
        axes = tuple(name for name in (single or group).split() if name != "1")
        if not all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in axes):
            raise ValueError(f"'{single or group}' in '{text}' is no axis: an axis has a name")
        dims.append(axes)
    return tuple(dims)


@dataclass(frozen=True)
class Rearrange(Op):
    """A reshape, a permutation of axes and another reshape."""

    is_view: ClassVar[bool] = False
    text: str
    disk: Axes
    model: Axes
    sizes: tuple[tuple[str, int], ...]  # of every axis, in the order of `disk`

    def shape(self, shape: Shape) -> Shape:
        return self._joined(self.model)

    @property
    def disk_shape(self) -> Shape:
        """The shape of what the op reads."""
        return self._joined(self.disk)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        order = [name for name, _ in self.sizes]
        apart = x.reshape([size for _, size in self.sizes])
        permuted = apart.permute([order.index(name) for axes in self.model for name in axes])
        return permuted.reshape(self._joined(self.model))

    @property
    def inverse(self) -> Op:
        sizes = dict(self.sizes)
        order = [name for axes in self.model for name in axes]
        left, _, right = self.text.partition(" -> ")
        swapped = tuple((name, sizes[name]) for name in order)
        return Rearrange(f"{right} -> {left}", self.model, self.disk, swapped)

    def _joined(self, side: Axes) -> Shape:
        sizes = dict(self.sizes)
        return tuple(math.prod(sizes[name] for name in axes) for axes in side)

    def __str__(self) -> str:
        return f"rearrange {self.text}"
