"""Drawing tokens with the Triton kernel: the same filters and numbers as in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf

import torch

from assembler.engine.host_copies import to_device
from assembler.engine.sampling_params import SamplingParams
from assembler.kernels.sampling_torch import RowSettings


def row_settings(params: SequenceOf[SamplingParams], device: torch.device) -> RowSettings:
    """What the kernel takes for rows of these parameters."""

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return to_device(values, dtype, device)

    return RowSettings(
        temperature=column([0.0 if p.is_greedy else p.temperature for p in params]),
        top_k=column([max(p.top_k, 0) for p in params], torch.int32),
        top_p=column([p.top_p for p in params]),
        log_min_p=column([math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params]),
    )


def draw_in_one_pass(
    logits: torch.Tensor, params: SequenceOf[SamplingParams], numbers: list[float]
) -> torch.Tensor:
    """A token id [R] for each row of `logits` [R, V], -1 where it is no distribution.

    It is the one that plain torch draws with the same `numbers`, unless a number or the share
    `top_p` falls on a border within the rounding of float32 sums (some 1e-6 of the mass).
    """
    # Triton is imported by those who use it only: it is not there on every platform.
    from assembler.kernels.sampling_triton import sample_by_number

    column = to_device(numbers, torch.float32, logits.device)
    return sample_by_number(logits, *row_settings(params, logits.device), column)
