"""How far a kernel may be from its reference, and how far it is."""

from __future__ import annotations

from collections.abc import Callable

import torch

Check = tuple[str, Callable[[], float], float]  # what, its largest error, the bound of that
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-4}


def largest_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, of large numbers in proportion; infinite where `got` holds NaN."""
    wanted = wanted.double()
    difference = (got.double() - wanted).abs() / (1 + wanted.abs())
    return float(difference.nan_to_num(torch.inf).max())


def name_of(dtype: torch.dtype) -> str:
    """As users write it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
