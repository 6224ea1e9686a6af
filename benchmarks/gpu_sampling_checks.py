"""Drawing tokens on the device, beside torch with the same numbers in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu_errors import Check

from assembler.kernels.sampling_torch import RowSettings, kept_weights

# (temperature, top_k, top_p, log of min_p)
ROWS = [
    (1.0, 0, 1.0, -torch.inf),
    (0.7, 50, 1.0, -torch.inf),
    (1.0, 0, 0.9, -torch.inf),
    (1.3, 0, 1.0, -3.0),
    (1.7, 20, 0.8, -5.0),
]


def sampling_checks(device: torch.device, smoke: bool) -> Iterator[Check]:
    """The likeliest tokens, and draws under each setting."""
    from assembler.kernels.sampling_triton import sample_by_number

    rows, vocabulary = (5, 300) if smoke else (60, 151936)
    logits = 3 * torch.randn(rows, vocabulary, device=device)
    numbers = torch.rand(rows, device=device)

    def wrong(temperature: float, top_k: int) -> float:
        """Rows whose token is not the likeliest, the only one that may be drawn."""
        settings = _settings([(temperature, top_k, 1.0, -torch.inf)] * rows, device)
        return float((sample_by_number(logits, *settings, numbers) != logits.argmax(-1)).sum())

    yield "sampling, greedy", lambda: wrong(0.0, 0), 0.0
    yield "sampling, top-k of 1", lambda: wrong(0.7, 1), 0.0

    def missed() -> float:
        """How far a number is outside of its token's part of the distribution, at most."""
        settings = _settings(ROWS * (rows // len(ROWS)), device)
        drawn = sample_by_number(logits, *settings, numbers)[:, None]
        weights = kept_weights(logits.double(), settings)
        shares = weights / weights.sum(-1, keepdim=True)
        end = shares.cumsum(-1).gather(-1, drawn)
        begin = end - shares.gather(-1, drawn)
        number = numbers.double()[:, None]
        return float(torch.maximum(begin - number, number - end).clamp(min=0).max())

    yield "sampling, top-k, top-p and min-p", missed, 1e-4


def _settings(rows: list[tuple[float, int, float, float]], device: torch.device) -> RowSettings:
    columns = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    temperature, top_k, top_p, log_min_p = columns
    return RowSettings(temperature.float(), top_k.int(), top_p.float(), log_min_p.float())
