"""Ops that compute: the checkpoint stores a function of the parameter, not the parameter itself.

They work in float32 (float64 stays), whatever the type on disk, so that the only rounding is that
of the copy into the parameter. What their inverses cannot restore is declared in `loss`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from assembler.weights.ops import Op, Shape


@dataclass(frozen=True)
class ValueOp(Op):
    """Base of the ops that change values and leave the shape."""

    is_view: ClassVar[bool] = False

    def shape(self, shape: Shape) -> Shape:
        return shape

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return self._compute(x if x.dtype == torch.float64 else x.float())

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Affine(ValueOp):
    """scale * x + offset, or with `undo` the way back, (x - offset) / scale."""

    scale: float = 1.0
    offset: float = 0.0
    undo: bool = False

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.offset) / self.scale if self.undo else x * self.scale + self.offset

    @property
    def inverse(self) -> Op:
        return Affine(self.scale, self.offset, not self.undo)

    @property
    def loss(self) -> str | None:
        """Powers of two scale without rounding; everything else rounds."""
        if not self.offset and math.frexp(self.scale)[0] in (0.5, -0.5):
            return None
        return f"the last bits, to the rounding of {self}"

    def __str__(self) -> str:
        forward = f"{self.scale:g} × value" if self.scale != 1 else "value"
        text = f"{forward} {'-' if self.offset < 0 else '+'} {abs(self.offset):g}"
        text = text if self.offset else forward
        return f"undo {text}" if self.undo else text


@dataclass(frozen=True)
class NegativeExp(ValueOp):
    """-exp(x): the decay A of a state-space model, stored as log(-A) (Mamba, Gu and Dao 2023)."""

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.exp(x)

    @property
    def inverse(self) -> Op:
        return LogNegative()

    @property
    def loss(self) -> str:
        return "the last bits, to the rounding of exp and log"

    def __str__(self) -> str:
        return "-exp(value)"


@dataclass(frozen=True)
class LogNegative(ValueOp):
    """log(-x), the inverse of `NegativeExp`."""

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(-x)

    @property
    def inverse(self) -> Op:
        return NegativeExp()

    @property
    def loss(self) -> str:
        return NegativeExp().loss

    def __str__(self) -> str:
        return "log(-value)"
