"""The stacked weights that the kernels of a mixture of experts are given.

E experts, H hidden, I intermediate (this rank's share).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ExpertWeights:
    """The parameters of all experts, stacked; the rows of `gate_up` are gate's, then up's."""

    gate_up: torch.Tensor  # [E, 2I, H]
    down: torch.Tensor  # [E, H, I]
    gate_up_bias: torch.Tensor | None = None  # [E, 2I]
    down_bias: torch.Tensor | None = None  # [E, H]
