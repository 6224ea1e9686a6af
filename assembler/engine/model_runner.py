"""From a scheduled batch to sampled tokens: inputs, forward pass, sampling; owner of the KV memory.

Shapes: T tokens of the step, S sequences, R rows that sample, V vocabulary, P pages.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.kv_cache import KVCache, allocate_kv_caches, cache_specs
from assembler.engine.sampler import Sampler
from assembler.engine.scheduler import ScheduledBatch
from assembler.kernels.paged_batch import PagedBatch

if TYPE_CHECKING:
    from assembler.kernels.dispatch import AttentionBackend


class ModelRunner:
    """Runs steps of `model` over a paged KV cache of its own.

    The model is any module called as `model(input_ids [T], ctx) -> logits [R, V]` whose attention
    blocks have `cache_index` and `cache_spec()`; there is one cache for each of them.
    """

    def __init__(
        self,
        model: nn.Module,
        attention_backend: AttentionBackend,
        *,
        num_pages: int,
        page_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sampler: Sampler | None = None,
    ) -> None:
        """Allocate the cache of `num_pages` pages.

        Args:
            dtype: of the cached keys and values.
            sampler: None: one without a seed.
        """
        self.model = model
        self.attention_backend = attention_backend
        self.page_size = page_size
        self.device = torch.device(device)
        self.sampler = sampler or Sampler()
        self.kv_caches: list[KVCache] = allocate_kv_caches(
            cache_specs(model), num_pages, page_size, self.device, dtype
        )

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> list[int | None]:
        """Run the step; a new token for each of `batch.sampling_sequences`.

        None stands for a sequence whose logits are no distribution (NaN).
        """
        input_ids, ctx = self.build_inputs(batch)
        logits = self.model(input_ids, ctx)
        return self.sampler.sample(logits, batch.sampling_sequences)

    def build_inputs(self, batch: ScheduledBatch) -> tuple[torch.Tensor, ForwardContext]:
        """The token ids [T] of the step, and all that the model needs to know about them."""
        input_ids: list[int] = []
        positions: list[int] = []
        sequence_lengths: list[int] = []
        slot_mapping: list[int] = []
        cu_seqlens_q = [0]
        context_lens: list[int] = []
        logit_rows: list[int] = []
        for sequence, start, count, samples in batch.items:
            end = start + count
            prompt = sequence.num_prompt_tokens
            input_ids += sequence.token_ids[start:end]
            positions += range(start, end)
            # By position alone, so that a token computed again after a preemption is the same.
            sequence_lengths += [max(prompt, position + 1) for position in range(start, end)]
            slot_mapping += self._slots(sequence.pages, start, end)
            cu_seqlens_q.append(len(input_ids))
            context_lens.append(end)
            if samples:
                logit_rows.append(len(input_ids) - 1)
        paged = PagedBatch(
            slot_mapping=self._tensor(slot_mapping, torch.int64),
            page_table=self._page_table(batch),
            cu_seqlens_q=self._tensor(cu_seqlens_q, torch.int32),
            context_lens=self._tensor(context_lens, torch.int32),
            max_seqlen_q=max(item.num_new_tokens for item in batch.items),
            max_context_len=max(context_lens),
        )
        every_row = len(logit_rows) == len(input_ids)
        ctx = ForwardContext(
            positions=self._tensor(positions, torch.int64),
            sequence_lengths=self._tensor(sequence_lengths, torch.int64),
            paged=paged,
            attention=self.attention_backend,
            kv_caches=self.kv_caches,
            logit_rows=None if every_row else self._tensor(logit_rows, torch.int64),
        )
        return self._tensor(input_ids, torch.int64), ctx

    def _page_table(self, batch: ScheduledBatch) -> torch.Tensor:
        """[S, max_pages] int32: the pages each sequence reads, padded with 0."""
        lists = []
        for item in batch.items:
            used = -(-(item.start + item.num_new_tokens) // self.page_size)
            lists.append(item.sequence.pages[:used])
        width = max(map(len, lists))
        rows = [pages + [0] * (width - len(pages)) for pages in lists]
        return self._tensor(rows, torch.int32)

    def _slots(self, pages: SequenceOf[int], start: int, end: int) -> list[int]:
        """Where the tokens at positions `start` to `end` of a sequence are stored."""
        size = self.page_size
        if end - start == 1:  # a decode
            return [pages[start // size] * size + start % size]
        slots: list[int] = []
        for number in range(start // size, (end - 1) // size + 1):
            first = max(start - number * size, 0)
            last = min(end - number * size, size)
            slots += range(pages[number] * size + first, pages[number] * size + last)
        return slots

    def _tensor(self, values: list, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)
