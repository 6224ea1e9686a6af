"""Steps that meet every variant of the Triton paged attention, for compiling before serving.

Triton compiles a kernel when constants of it are met for the first time, which takes seconds. What
changes from step to step (batch, lengths, splits, width of the page table) is no constant: each
kind of attention of a model has at most four kernels, decode and prefill, whole and split, and two
that merge splits. Mixed steps launch the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from assembler.kernels.paged_batch import PagedBatch


def warm_up_batches(max_context_len: int, device: torch.device) -> Iterator[PagedBatch]:
    """Steps of one short sequence, which between them launch all kernels that later ones will.

    Nothing is stored (slots of -1), and what is read is page 0, whatever it holds. Whoever runs the
    whole model over them compiles its other kernels too. What comes out means nothing.

    Args:
        max_context_len: of the contexts there will be, by which contexts are split.
    """
    for query_len in (1, 2):
        for longest in (query_len, max_context_len):
            yield PagedBatch(
                slot_mapping=torch.full((query_len,), -1, dtype=torch.int64, device=device),
                page_table=torch.zeros(1, 1, dtype=torch.int32, device=device),
                cu_seqlens_q=torch.tensor([0, query_len], dtype=torch.int32, device=device),
                context_lens=torch.tensor([query_len], dtype=torch.int32, device=device),
                max_seqlen_q=query_len,
                max_context_len=longest,
            )
