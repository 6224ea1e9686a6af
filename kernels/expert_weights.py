"""What the kernels of a mixture of experts are given: the stacked weights and the gating.

E experts, H hidden, I intermediate (this rank's share).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gating:
    """How gate and up become one: act(gate) * (up + up_offset), both clamped first.

    `name` is the activation as configs spell it, for kernels that compute it themselves.
    """

    name: str
    act: Callable[[torch.Tensor], torch.Tensor]
    limit: float | None = None  # gate is clamped to at most this, up to +-this
    up_offset: float = 0.0

    def __call__(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return self.act(gate) * (up + self.up_offset if self.up_offset else up)


@dataclass(frozen=True)
class ExpertWeights:
    """The parameters of all experts, stacked; the rows of `gate_up` are gate's, then up's."""

    gate_up: torch.Tensor  # [E, 2I, H]
    down: torch.Tensor  # [E, H, I]
    gate_up_bias: torch.Tensor | None = None  # [E, 2I]
    down_bias: torch.Tensor | None = None  # [E, H]
