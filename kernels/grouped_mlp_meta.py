"""The experts of a mixture on the meta device: what the kernels allocate, and nothing computed."""

from __future__ import annotations

import torch

from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating


def grouped_mlp_meta(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    experts: ExpertWeights,
    gating: Gating,
    *,
    weigh_input: bool = False,
) -> torch.Tensor:
    """Same contract as `grouped_mlp`, for shapes alone.

    Which expert gets how many tokens is not known here; the kernels' memory does not depend on it:
    each token's row is kept once for each of its experts, between the projections and after them.
    """
    inner = x.new_empty(chosen.numel(), experts.down.shape[-1])
    out = inner.new_empty(chosen.numel(), experts.down.shape[1])
    return out.view(*chosen.shape, -1).sum(dim=1)
