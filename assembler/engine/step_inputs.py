"""What one step feeds the model, as plain numbers: made by the rank that schedules, run by all.

Shapes: T tokens of the step, S sequences, W pages of the longest of them, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch

from assembler.engine.scheduled_batch import ScheduledBatch

_EVERY_ROW = -1


@dataclass(frozen=True)
class StepInputs:
    """The fields of `ForwardContext` and `PagedBatch` that differ from step to step."""

    input_ids: list[int]  # [T]
    positions: list[int]  # [T]
    sequence_lengths: list[int]  # [T]
    slot_mapping: list[int]  # [T]
    cu_seqlens_q: list[int]  # [S + 1]
    context_lens: list[int]  # [S]
    page_table: list[list[int]]  # [S, W], padded with 0
    logit_rows: list[int] | None  # [R]; None: every row
    max_seqlen_q: int

    @classmethod
    def of(cls, batch: ScheduledBatch, page_size: int) -> StepInputs:
        """The inputs of a scheduled step."""
        input_ids: list[int] = []
        positions: list[int] = []
        sequence_lengths: list[int] = []
        slot_mapping: list[int] = []
        cu_seqlens_q = [0]
        context_lens: list[int] = []
        logit_rows: list[int] = []
        for item in batch.items:
            sequence, start, count, samples = item
            end = start + count
            prompt = sequence.num_prompt_tokens
            if count == 1:  # the same as below, in half the time
                input_ids.append(sequence.token_ids[start])
                positions.append(start)
                sequence_lengths.append(end if end > prompt else prompt)
                page = sequence.pages[start // page_size]
                slot_mapping.append(page * page_size + start % page_size)
            else:
                input_ids += sequence.token_ids[start:end]
                positions += range(start, end)
                # By position alone: a token computed again after a preemption is the same.
                sequence_lengths += [max(prompt, place + 1) for place in range(start, end)]
                slot_mapping += slots(sequence.pages, start, end, page_size)
            if sequence.needs_prompt_logits:
                first = cu_seqlens_q[-1]
                logit_rows += range(first, first + item.num_prompt_logits)
            cu_seqlens_q.append(len(input_ids))
            context_lens.append(end)
            if samples:
                logit_rows.append(len(input_ids) - 1)
        return cls(
            input_ids=input_ids,
            positions=positions,
            sequence_lengths=sequence_lengths,
            slot_mapping=slot_mapping,
            cu_seqlens_q=cu_seqlens_q,
            context_lens=context_lens,
            page_table=_page_table(batch, page_size),
            logit_rows=None if len(logit_rows) == len(input_ids) else logit_rows,
            max_seqlen_q=max(item.num_new_tokens for item in batch.items),
        )

    def pack(self) -> torch.Tensor:
        """Everything in one int64 tensor, for another rank's `unpack`."""
        rows = [] if self.logit_rows is None else self.logit_rows
        tokens, sequences, width = (
            len(self.input_ids),
            len(self.context_lens),
            len(self.page_table[0]),
        )
        sampling = _EVERY_ROW if self.logit_rows is None else len(rows)
        numbers = [tokens, sequences, width, sampling, self.max_seqlen_q]
        for values in (
            self.input_ids,
            self.positions,
            self.sequence_lengths,
            self.slot_mapping,
            self.cu_seqlens_q,
            self.context_lens,
            *self.page_table,
            rows,
        ):
            numbers += values
        return torch.tensor(numbers, dtype=torch.int64)

    @classmethod
    def unpack(cls, packed: torch.Tensor) -> StepInputs:
        """What `pack` was called on."""
        tokens, sequences, width, sampling, max_seqlen_q, *numbers = packed.tolist()
        rest = iter(numbers)

        def take(count: int) -> list[int]:
            return [next(rest) for _ in range(count)]

        return cls(
            input_ids=take(tokens),
            positions=take(tokens),
            sequence_lengths=take(tokens),
            slot_mapping=take(tokens),
            cu_seqlens_q=take(sequences + 1),
            context_lens=take(sequences),
            page_table=[take(width) for _ in range(sequences)],
            logit_rows=None if sampling == _EVERY_ROW else take(sampling),
            max_seqlen_q=max_seqlen_q,
        )


def _page_table(batch: ScheduledBatch, page_size: int) -> list[list[int]]:
    """[S, W]: the pages each sequence reads, padded with 0."""
    lists = []
    for item in batch.items:
        used = -(-(item.start + item.num_new_tokens) // page_size)
        lists.append(item.sequence.pages[:used])
    width = max(map(len, lists))
    return [pages + [0] * (width - len(pages)) for pages in lists]


def slots(pages: SequenceOf[int], start: int, end: int, page_size: int) -> list[int]:
    """Where the tokens at positions `start` to `end` of a sequence are stored."""
    found: list[int] = []
    for number in range(start // page_size, (end - 1) // page_size + 1):
        first = max(start - number * page_size, 0)
        last = min(end - number * page_size, page_size)
        found += range(pages[number] * page_size + first, pages[number] * page_size + last)
    return found
