"""Drawing a token of each row in plain torch, by sorting: what the Triton kernel is judged by.

The order is that of vLLM: temperature, then min-p (Nguyen et al., 2024), top-k (Fan et al., 2018)
and top-p (nucleus sampling, Holtzman et al., 2020), each over what the one before it left. Tokens
that tie with the last one kept are kept as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

NO_TOKEN = -1
"""Stands for a row that is no distribution: it holds NaN or +inf, or nothing but -inf."""


class RowSettings(NamedTuple):
    """How each of R rows is sampled from; all tensors [R], float32; `top_k` whole numbers."""

    temperature: torch.Tensor  # 0: the likeliest token
    top_k: torch.Tensor  # 0: all
    top_p: torch.Tensor  # 1: all
    log_min_p: torch.Tensor  # log of min_p; -inf: all


def kept_weights(logits: torch.Tensor, settings: RowSettings) -> torch.Tensor:
    """The weights [R, V] that tokens are drawn by: 1 for the likeliest, 0 for never.

    Args:
        logits: [R, V] float32 or float64, no row without a finite maximum.
    """
    column = RowSettings(*(value.to(logits.device)[:, None] for value in settings))
    scaled = (logits - logits.amax(-1, keepdim=True)) / column.temperature.type_as(logits)
    ordered, order = logits.sort(dim=-1, descending=True)
    vocab_size = logits.shape[-1]
    last = torch.where(column.top_k > 0, column.top_k, vocab_size).clamp(max=vocab_size) - 1
    kept = (logits >= ordered.gather(-1, last.long())) & (scaled >= column.log_min_p)
    weights = scaled.exp().masked_fill(~kept, 0.0)
    descending = weights.gather(-1, order)
    summed = descending.cumsum(-1)
    goal = column.top_p * summed[:, -1:]
    last = ((summed - descending) < goal).sum(-1, keepdim=True) - 1
    floor = ordered.gather(-1, last.clamp(min=0))
    return weights.masked_fill((logits < floor) & (column.top_p < 1), 0.0)


def draw_by_number(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Tokens [R] at which the cumulative sums of `weights` [R, V] pass the shares `numbers` [R]."""
    summed = weights.cumsum(-1)
    columns = torch.searchsorted(
        summed, numbers[:, None].type_as(summed) * summed[:, -1:], right=True
    )
    return columns.clamp(max=weights.shape[-1] - 1).squeeze(1)
