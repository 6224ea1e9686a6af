"""The inputs of decode steps in tensors that stay where they are, as CUDA graphs need them.

Shapes: S sequences of a step, N rows of the graph that runs it, W pages of the longest sequence.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch

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
        self._pinned = device.type == "cuda"
        with torch.inference_mode(False):
            # Input ids, positions, sequence lengths and slots, each [N], one after the other.
            self._numbers = torch.zeros(4 * max_batch, dtype=torch.int64, device=device)
            self._context_lens = torch.ones(max_batch, dtype=torch.int32, device=device)
            self._page_table = torch.zeros(max_batch, self.width, dtype=torch.int32, device=device)
            self._cu_seqlens_q = torch.arange(max_batch + 1, dtype=torch.int32, device=device)
            self._host_pages = torch.zeros(max_batch, self.width, dtype=torch.int32)
        self._sent: list[list[int]] = []  # the rows of the page table that the device has

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
        self._send(torch.tensor(numbers), self._numbers[: len(numbers)])
        lengths = torch.tensor(step.context_lens + [1] * padding, dtype=torch.int32)
        self._send(lengths, self._context_lens[:size])
        if step.page_table != self._sent:
            self._send_pages(step.page_table)

    def _send_pages(self, rows: list[list[int]]) -> None:
        """Bring the page table up to date; what lies beyond `rows` is not read.

        Few rows change from one step to the next, and turning lists into tensors is what costs.
        """
        changed = [
            number
            for number, (row, known) in enumerate(zip_longest(rows, self._sent))
            if number < len(rows) and row != known
        ]
        self._sent = []  # nothing is known should this fail
        if changed:
            width = len(rows[0])
            block = self._host_pages[: len(rows), :width]
            block[changed] = torch.tensor([rows[number] for number in changed], dtype=torch.int32)
            self._send(block.contiguous(), self._page_table[: len(rows), :width])
        self._sent = rows

    def _send(self, values: torch.Tensor, target: torch.Tensor) -> None:
        """Copy to the device. Pinned memory is not used again before the copy has been made."""
        target.copy_(values.pin_memory() if self._pinned else values, non_blocking=True)
