"""Runs texts through a model over paged KV memory by hand: no engine, no scheduler.

What a scheduler would decide is fixed here, so that little can hide: pages are dealt out in a
shuffled order, texts share the step, and memory nobody has written holds large numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.kv_cache import allocate_kv_caches
from assembler.kernels.dispatch import attention_backend
from assembler.kernels.paged_batch import PagedBatch


class PagedTexts:
    """Some texts, each with the pages it needs, and how far each has been read."""

    def __init__(
        self, model: nn.Module, texts: torch.Tensor, backend: str, page_size: int = 4
    ) -> None:
        """`texts` is [S, length]; the cache has room for all of it and a few pages to spare."""
        self.model = model
        self.texts = texts
        self.page_size = page_size
        self.done = [0] * len(texts)
        self.backend = attention_backend(backend, torch.device("cpu"))
        pages_each = -(-texts.shape[1] // page_size)
        generator = torch.Generator().manual_seed(3)
        order = torch.randperm(len(texts) * pages_each + 3, generator=generator)
        self.pages = order[: len(texts) * pages_each].view(len(texts), pages_each)
        blocks = [block for block in model.modules() if hasattr(block, "cache_index")]
        self.kv_caches = []
        for block in sorted(blocks, key=lambda block: block.cache_index):
            pair = allocate_kv_caches(
                [block.cache_spec()], len(order), page_size, torch.device("cpu"), torch.float32
            )[0]
            for cache in pair:
                if cache is not None:
                    cache.normal_(std=30, generator=generator)
            self.kv_caches.append(pair)

    @torch.no_grad()
    def advance(self, counts: Sequence[int], prompts: Sequence[int]) -> list[torch.Tensor]:
        """Read `counts[s]` more tokens of each text; returns their logits, [count, vocab] each.

        `prompts[s]` is how long text s is known to be: RoPE types that depend on the length of a
        text get at least that.
        """
        spans = [range(d, d + n) for d, n in zip(self.done, counts, strict=True)]
        ids = torch.cat([self.texts[s, span.start : span.stop] for s, span in enumerate(spans)])
        self.done = [span.stop for span in spans]
        logits = self.model(ids, self._context(spans, prompts))
        return list(logits.split(list(counts)))

    def _context(self, spans: Sequence[range], prompts: Sequence[int]) -> ForwardContext:
        slots = [
            int(self.pages[s, p // self.page_size]) * self.page_size + p % self.page_size
            for s, span in enumerate(spans)
            for p in span
        ]
        lengths = [
            max(known, p + 1) for known, span in zip(prompts, spans, strict=True) for p in span
        ]
        starts = torch.tensor([0, *map(len, spans)]).cumsum(0)
        paged = PagedBatch(
            slot_mapping=torch.tensor(slots),
            page_table=self.pages.to(torch.int32),
            cu_seqlens_q=starts.to(torch.int32),
            context_lens=torch.tensor([span.stop for span in spans], dtype=torch.int32),
            max_seqlen_q=max(map(len, spans)),
            max_context_len=max(span.stop for span in spans),
        )
        return ForwardContext(
            positions=torch.tensor([p for span in spans for p in span]),
            sequence_lengths=torch.tensor(lengths),
            paged=paged,
            attention=self.backend,
            kv_caches=self.kv_caches,
        )


def paged_logits(model: nn.Module, texts: torch.Tensor) -> torch.Tensor:
    """The logits of [S, length] texts, read in two chunks of unequal lengths, then by token.

    The whole text counts as the prompt: RoPE types that depend on its length see all of it.
    """
    count, length = texts.shape
    paged = PagedTexts(model, texts, "torch")
    first = [1 + (length // 4 + 2 * s) % max(1, length // 2) for s in range(count)]
    second = [max(0, length * 2 // 3 - f) for f in first]
    steps = [first, second]
    rows: list[list[torch.Tensor]] = [[] for _ in range(count)]
    while any(done < length for done in paged.done):
        counts = steps.pop(0) if steps else [min(1, length - done) for done in paged.done]
        for s, found in enumerate(paged.advance(counts, [length] * count)):
            rows[s].append(found)
    return torch.stack([torch.cat(found) for found in rows])
