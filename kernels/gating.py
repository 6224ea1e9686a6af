"""What a gated linear unit does between its projections (Shazeer, 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

TensorFunction: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def gated(
    gate: torch.Tensor,
    up: torch.Tensor,
    act: TensorFunction,
    limit: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """act(gate) * (up + up_offset), [..., I] of two [..., I].

    With a `limit`, gate is clamped to at most this and up to within it, before all else (gpt-oss).
    """
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return act(gate) * (up + up_offset if up_offset else up)


@dataclass(frozen=True)
class Gating:
    """The settings of `gated`.

    `name` is the activation as configs spell it, for kernels that compute it themselves.
    """

    name: str
    act: TensorFunction
    limit: float | None = None
    up_offset: float = 0.0

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return gated(gate, up, self.act, self.limit, self.up_offset)
