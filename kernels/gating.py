"""What a gated linear unit does between its projections (Shazeer, 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from assembler.kernels.fused import runs_fused

TensorFunction: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def gated(
    gate: torch.Tensor,
    up: torch.Tensor,
    act: TensorFunction,
    name: object = None,
    limit: float | None = None,
    up_offset: float = 0.0,
) -> torch.Tensor:
    """`gated_torch`, in one pass where a fused kernel runs (see `fused`) and knows the activation.

    Args:
        name: the activation as configs spell it; anything but a known name stands for itself.
    """
    if isinstance(name, str) and gate.shape == up.shape and runs_fused(gate, up):
        # Triton is imported by those who use it only: it is not there on every platform.
        from assembler.kernels.gated_triton import KNOWN_ACTIVATIONS, gated_triton

        if name in KNOWN_ACTIVATIONS:
            return gated_triton(gate, up, name, limit, up_offset)
    return gated_torch(gate, up, act, limit, up_offset)


def gated_torch(
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
        return gated(gate, up, self.act, self.name, self.limit, self.up_offset)
