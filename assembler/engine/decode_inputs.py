"""The inputs of decode steps in tensors that stay where they are, as CUDA graphs need them.

Shapes: S sequences of a step, N rows of the graph that runs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from assembler.engine.host_copies import host_tensor
from assembler.engine.page_table import PageTable
from assembler.engine.step_inputs import StepInputs
from assembler.kernels.paged_batch import PagedBatch


class DecodeInputs:
    """One token of each of at most `max_batch` sequences; batches of every size share the memory.

    Rows beyond a step's sequences are padding: token 0 at position 0, stored nowhere (slot -1),
    which attends to the first token of some page. What comes of them is not read.
    """

    def __init__(
        self, max_batch: int, max_model_len: int, page_size: int, device: torch.device
    ) -> None:
        """Padding throughout: `of` can run before the first `fill`."""
        self.width = -(-max_model_len // page_size)
        self.max_context_len = max_model_len
        self._device = device
        with torch.inference_mode(False):
            # Input ids, positions, sequence lengths and slots, each [N], one after the other.
            self._numbers = torch.zeros(4 * max_batch, dtype=torch.int64, device=device)
            self._context_lens = torch.ones(max_batch, dtype=torch.int32, device=device)
            self._page_table = torch.zeros(max_batch, self.width, dtype=torch.int32, device=device)
            self._cu_seqlens_q = torch.arange(max_batch + 1, dtype=torch.int32, device=device)
        self._pages = PageTable()
        self._has_pages = False  # whether the device has what `_pages` has

    def holds(self, step: StepInputs) -> bool:
        """Whether no context of the step is longer than those that there should be."""
        return max(step.context_lens) <= self.max_context_len

    def of(self, size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """The token ids [N] of a batch of `size`, and its fields of a `ForwardContext`."""
        input_ids, positions, lengths, slots = self._numbers[: 4 * size].view(4, size)
        paged = PagedBatch(
            slot_mapping=slots,
            page_table=self._page_table[:size],
            cu_seqlens_q=self._cu_seqlens_q[: size + 1],
            context_lens=self._context_lens[:size],
            max_seqlen_q=1,
            max_context_len=self.max_context_len,
        )
        return input_ids, {"positions": positions, "sequence_lengths": lengths, "paged": paged}

    def fill(self, step: StepInputs, size: int) -> None:
        """Put a step of at most `size` decodes in place; the host does not wait for the copies."""
        padding = size - len(step.input_ids)
        numbers: list[int] = []
        for values, filler in (
            (step.input_ids, 0),
            (step.positions, 0),
            (step.sequence_lengths, 1),
            (step.slot_mapping, -1),
        ):
            numbers += values
            numbers += [filler] * padding
        self._send(numbers, self._numbers[: len(numbers)])
        self._send(step.context_lens + [1] * padding, self._context_lens[:size])
        self._has_pages &= not self._pages.update(step.page_lists)
        if not self._has_pages:
            rows = self._pages.rows()
            self._send(rows, self._page_table[: len(rows), : rows.shape[1]])
            self._has_pages = True

    def _send(self, values: list[int] | np.ndarray, target: torch.Tensor) -> None:
        """Copy to the device."""
        target.copy_(host_tensor(values, target.dtype, self._device), non_blocking=True)
