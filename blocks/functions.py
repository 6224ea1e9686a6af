"""The functions that wiring equations may call besides blocks.

All but `min` and `max` take a tensor or a number: `sqrt(hidden_size)` is a constant of the model,
`tanh(x)` works on a stream. `min` and `max` compare numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch

X = TypeVar("X", torch.Tensor, float)


def sqrt(x: X) -> X:
    """Square root."""
    return torch.sqrt(x) if isinstance(x, torch.Tensor) else math.sqrt(x)


def exp(x: X) -> X:
    """e to the power x."""
    return torch.exp(x) if isinstance(x, torch.Tensor) else math.exp(x)


def log(x: X) -> X:
    """Natural logarithm."""
    return torch.log(x) if isinstance(x, torch.Tensor) else math.log(x)


def tanh(x: X) -> X:
    """Hyperbolic tangent."""
    return torch.tanh(x) if isinstance(x, torch.Tensor) else math.tanh(x)


def sigmoid(x: X) -> X:
    """1 / (1 + e to the power -x)."""
    if isinstance(x, torch.Tensor):
        return torch.sigmoid(x)
    return 0.5 * (1.0 + math.tanh(0.5 * x))  # which does not overflow, as exp does


def softcap(x: X, cap: float) -> X:
    """cap * tanh(x / cap): squeezes x smoothly into (-cap, cap) (Gemma 2, 2024)."""
    return tanh(x / cap) * cap


FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "exp": exp,
        "log": log,
        "max": max,
        "min": min,
        "sigmoid": sigmoid,
        "softcap": softcap,
        "sqrt": sqrt,
        "tanh": tanh,
    }
)
