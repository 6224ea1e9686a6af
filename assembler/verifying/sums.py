"""A tensor as a weighted sum of a few others: how the reference wires what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch

_MOST_TERMS = 4
_ROWS = 4096  # values that decide; more cannot agree by chance
_CLOSE = 1e-4


def as_sum(target: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> str | None:
    """An equation's right side, such as "x + 0.22 * attn(...)", or None if no sum of terms fits."""
    fitting = {n: t for n, t in terms.items() if t.numel() == target.numel()}
    goal = _sample(target)
    scale = goal.std()
    if not fitting or not bool(scale > 0):
        return None
    columns = {name: _sample(term) for name, term in fitting.items()}
    for count in range(1, min(_MOST_TERMS, len(columns)) + 1):
        for names in combinations(columns, count):
            matrix = torch.stack([columns[name] for name in names], dim=1)
            factors = torch.linalg.lstsq(matrix, goal[:, None]).solution[:, 0]
            if bool((matrix @ factors - goal).abs().max() <= _CLOSE * scale):
                return _text(dict(zip(names, factors.tolist(), strict=True)))
    return None


def as_softcap(
    target: torch.Tensor, terms: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> str | None:
    """The same for cap * tanh(term / cap), with a cap that config.json names."""
    caps = [v for k, v in config.items() if "cap" in k and isinstance(v, int | float) and v > 0]
    goal = _sample(target)
    for name, term in terms.items():
        for cap in caps:
            values = _sample(term)
            if values.shape != goal.shape:
                continue
            if bool((cap * torch.tanh(values / cap) - goal).abs().max() <= _CLOSE * goal.std()):
                return f"softcap({name}, {cap})"
    return None


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.flatten()
    step = max(1, flat.numel() // _ROWS)
    return flat[::step][:_ROWS].double()


def _text(factors: Mapping[str, float]) -> str:
    text = ""
    for name, factor in factors.items():
        size = f"{abs(factor):.4g}"
        term = name if size == "1" else f"{size} * {name}"
        if not text:
            text = term if factor > 0 else f"-{term}"
        else:
            text += f" {'+' if factor > 0 else '-'} {term}"
    return text
