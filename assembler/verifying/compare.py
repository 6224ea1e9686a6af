"""How far two tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from assembler.verifying.report import Compared

# A value this many times the standard deviation may be off by twice as much: float32 rounds large
# values by more, and the streams of trained models hold some that are a thousand times the rest.
_OUTLIER = 100.0


def compare_logits(ours: torch.Tensor, reference: torch.Tensor, tolerance: float) -> Compared:
    """Logits of the same shape; `tolerance` is meant at a standard deviation of 1."""
    reference = reference.float()
    std = float(reference.std())
    error = float((ours.float() - reference).abs().max())
    return Compared(
        error=error if math.isfinite(error) else math.inf,
        std=std,
        bound=tolerance * max(1.0, std),
    )


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float | None:
    """max |difference| / (std + |value| / 100) of the reference; None where sizes do not fit."""
    if ours.numel() != reference.numel():
        try:
            reference = reference.expand_as(ours)
        except RuntimeError:
            return None
    reference = reference.reshape(ours.shape).float()
    scale = reference.std() + reference.abs() / _OUTLIER
    error = float(((ours.float() - reference).abs() / scale.clamp_min(1e-30)).max())
    return error if math.isfinite(error) else math.inf


def nearest(ours: torch.Tensor, candidates: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """The candidate with the least relative error, in the shape of `ours`."""
    rated = [(relative_error(ours, tensor), n, tensor) for n, tensor in enumerate(candidates)]
    fitting = [item for item in rated if item[0] is not None]
    if not fitting:
        return None
    tensor = min(fitting, key=lambda item: item[:2])[2]
    return tensor.expand_as(ours) if tensor.numel() != ours.numel() else tensor.reshape(ours.shape)
