"""What one step feeds the model, as plain numbers: made by the rank that schedules, run by all.

Shapes: T tokens of the step, S sequences, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from operator import sub

import numpy as np
import torch

from assembler.engine.scheduled_batch import ScheduledBatch
from assembler.engine.sequence import Sequence

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
    page_lists: list[list[int]]  # of each sequence, those that it reads; its own list, not a copy
    logit_rows: list[int] | None  # [R]; None: every row
    max_seqlen_q: int

    @classmethod
    def of(cls, batch: ScheduledBatch, page_size: int) -> StepInputs:
        """The inputs of a scheduled step, to be used before the scheduler makes another one."""
        sequences, _, counts, samples = zip(*batch.items, strict=True)
        plain = all(samples) and not any(sequence.needs_prompt_logits for sequence in sequences)
        if plain and max(counts) == 1:
            return cls._of_decodes(batch, page_size)
        return cls._of_any(batch, page_size)

    @classmethod
    def _of_decodes(cls, batch: ScheduledBatch, page_size: int) -> StepInputs:
        """The same as `_of_any`, of one token a sequence: in a third of the time."""
        sequences, starts, _, _ = zip(*batch.items, strict=True)
        together = [*zip(sequences, starts, strict=True)]
        context_lens = [start + 1 for start in starts]
        return cls(
            input_ids=[sequence.token_ids[start] for sequence, start in together],
            positions=[*starts],
            sequence_lengths=[max(s.num_prompt_tokens, start + 1) for s, start in together],
            slot_mapping=[
                s.pages[start // page_size] * page_size + start % page_size for s, start in together
            ],
            cu_seqlens_q=[*range(len(starts) + 1)],
            context_lens=context_lens,
            page_lists=_page_lists(sequences, context_lens, page_size),
            logit_rows=None,
            max_seqlen_q=1,
        )

    @classmethod
    def _of_any(cls, batch: ScheduledBatch, page_size: int) -> StepInputs:
        """The inputs of prompts, of chunks of them, and of decodes."""
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
            input_ids += sequence.token_ids[start:end]
            positions += range(start, end)
            # By position alone: a token computed again after a preemption is the same.
            sequence_lengths += [prompt] * (min(end, prompt) - start)
            sequence_lengths += range(max(start, prompt) + 1, end + 1)
            if count == 1:  # the same as below, in less time
                slot_mapping.append(
                    sequence.pages[start // page_size] * page_size + start % page_size
                )
            else:
                slot_mapping += slots(sequence.pages, start, end, page_size)
            if sequence.needs_prompt_logits:
                first = cu_seqlens_q[-1]
                logit_rows += range(first, first + item.num_prompt_logits)
            cu_seqlens_q.append(len(input_ids))
            context_lens.append(end)
            if samples:
                logit_rows.append(len(input_ids) - 1)
        sequences = [item.sequence for item in batch.items]
        return cls(
            input_ids=input_ids,
            positions=positions,
            sequence_lengths=sequence_lengths,
            slot_mapping=slot_mapping,
            cu_seqlens_q=cu_seqlens_q,
            context_lens=context_lens,
            page_lists=_page_lists(sequences, context_lens, page_size),
            logit_rows=None if len(logit_rows) == len(input_ids) else logit_rows,
            max_seqlen_q=max(item.num_new_tokens for item in batch.items),
        )

    def of_each_token(self, of_sequences: list[int]) -> list[int]:
        """What there is for each sequence [S], for each of its tokens: [T]."""
        if self.max_seqlen_q == 1:
            return of_sequences
        lengths = map(sub, self.cu_seqlens_q[1:], self.cu_seqlens_q)
        parts = zip(of_sequences, lengths, strict=True)
        return [number for number, length in parts for _ in range(length)]

    def pack(self) -> torch.Tensor:
        """Everything in one int64 tensor, for another rank's `unpack`."""
        rows = [] if self.logit_rows is None else self.logit_rows
        sampling = _EVERY_ROW if self.logit_rows is None else len(rows)
        numbers = [len(self.input_ids), len(self.context_lens), sampling, self.max_seqlen_q]
        for values in (
            self.input_ids,
            self.positions,
            self.sequence_lengths,
            self.slot_mapping,
            self.cu_seqlens_q,
            self.context_lens,
            [len(pages) for pages in self.page_lists],
            *self.page_lists,
            rows,
        ):
            numbers += values
        return torch.from_numpy(np.array(numbers, dtype=np.int64))

    @classmethod
    def unpack(cls, packed: torch.Tensor) -> StepInputs:
        """What `pack` was called on."""
        tokens, sequences, sampling, max_seqlen_q, *rest = packed.tolist()
        place = 0

        def take(count: int) -> list[int]:
            nonlocal place
            place += count
            return rest[place - count : place]

        return cls(
            input_ids=take(tokens),
            positions=take(tokens),
            sequence_lengths=take(tokens),
            slot_mapping=take(tokens),
            cu_seqlens_q=take(sequences + 1),
            context_lens=take(sequences),
            page_lists=[take(count) for count in take(sequences)],
            logit_rows=None if sampling == _EVERY_ROW else take(sampling),
            max_seqlen_q=max_seqlen_q,
        )


def _page_lists(
    sequences: SequenceOf[Sequence], context_lens: SequenceOf[int], page_size: int
) -> list[list[int]]:
    """The pages that each sequence reads: all of them, unless it has got some for later steps."""
    lists = []
    for sequence, length in zip(sequences, context_lens, strict=True):
        pages, used = sequence.pages, -(-length // page_size)
        lists.append(pages if len(pages) == used else pages[:used])
    return lists


def slots(pages: SequenceOf[int], start: int, end: int, page_size: int) -> list[int]:
    """Where the tokens at positions `start` to `end` of a sequence are stored."""
    found: list[int] = []
    for number in range(start // page_size, (end - 1) // page_size + 1):
        first = max(start - number * page_size, 0)
        last = min(end - number * page_size, page_size)
        found += range(pages[number] * page_size + first, pages[number] * page_size + last)
    return found
