"""Drawing tokens with the Triton kernels: the same filters and numbers as in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

import torch

from assembler.engine.host_copies import to_device
from assembler.engine.sampling_params import SamplingParams
from assembler.kernels.sampling_torch import RowSettings

if TYPE_CHECKING:
    from assembler.engine.sequence import Sequence

Row = tuple[float, float, float, float]
_MOST = float(1 << 24)  # whole numbers up to it are exact in float32, and no vocabulary is larger


def row_of(params: SamplingParams) -> Row:
    """The fields of `RowSettings` for a row of these parameters."""
    temperature = 0.0 if params.is_greedy else params.temperature
    log_min_p = math.log(params.min_p) if params.min_p > 0 else -math.inf
    return temperature, min(max(params.top_k, 0), _MOST), params.top_p, log_min_p


class FusedSampling:
    """Samples on a device that has the kernels; keeps there what rows of the newest step wanted."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._settings: torch.Tensor | None = None  # [4, R] float32: the columns of `_rows`

    def draw(
        self,
        logits: torch.Tensor,
        sequences: SequenceOf[Sequence],
        uniforms: Callable[[list[Sequence]], list[float]],
    ) -> torch.Tensor:
        """A token id [R] for each row of `logits` [R, V], -1 where it is no distribution.

        It is the one that plain torch draws with the same numbers, unless a number or the share
        `top_p` falls on a border within the rounding of float32 sums (some 1e-6 of the mass).

        Args:
            uniforms: gives a number in [0, 1) for each of the sequences that draw one.
        """
        # Triton is imported by those who use it only: it is not there on every platform.
        from assembler.kernels.sampling_triton import sample_by_number

        settings = self._settings_of(sequences, logits.device)
        drawing = [row for row, s in enumerate(sequences) if not s.params.is_greedy]
        numbers = settings.temperature  # all 0, of rows that draw none
        if drawing:
            column = [0.0] * len(sequences)
            drawn = uniforms([sequences[row] for row in drawing])
            for row, number in zip(drawing, drawn, strict=True):
                column[row] = number
            numbers = to_device(column, torch.float32, logits.device)
        return sample_by_number(logits, *settings, numbers)

    def _settings_of(self, sequences: SequenceOf[Sequence], device: torch.device) -> RowSettings:
        """Copied to the device if they are others than those of the last step."""
        rows = [sequence.sampling.settings for sequence in sequences]
        known = self._settings
        if known is None or known.device != device or rows != self._rows:
            known = to_device([*zip(*rows, strict=True)], torch.float32, device)
            self._rows, self._settings = rows, known
        return RowSettings(*known)
