"""Random inputs of the kernels, on the device that they run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from assembler.kernels.cost import AttentionShape
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.head_steps import HeadNorm, HeadSteps, Rotation
from assembler.kernels.paged_batch import PagedBatch


@dataclass(frozen=True)
class AttentionInputs:
    """What paged attention is called with, but for the options."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor | None
    batch: PagedBatch

    def in_float64(self) -> AttentionInputs:
        """The same numbers; caches of 8 bits as they are, since what they stand for is scaled."""
        k_cache, v_cache = (
            cache if cache is None or cache.dtype == torch.float8_e4m3fn else cache.double()
            for cache in (self.k_cache, self.v_cache)
        )
        return AttentionInputs(self.q.double(), k_cache, v_cache, self.batch)


def attention_inputs(
    shape: AttentionShape,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    page_size: int = 16,
) -> AttentionInputs:
    """A step over shuffled pages, all of which are written; caches of 8 bits hold -7 to 7."""
    pages = [-(-length // page_size) for length in context_lens]
    order = torch.randperm(sum(pages)).int()
    table = torch.zeros(len(pages), max(pages), dtype=torch.int32)
    for row, (count, end) in enumerate(zip(pages, accumulate(pages), strict=True)):
        table[row, :count] = order[end - count : end]
    slots = []
    for row, (count, length) in enumerate(zip(query_lens, context_lens, strict=True)):
        places = torch.arange(length - count, length)
        slots.append(table[row, places // page_size].long() * page_size + places % page_size)

    def cache(width: int) -> torch.Tensor:
        size = (sum(pages), page_size, shape.kv_heads, width)
        if shape.cache_itemsize == 1:
            return torch.randint(-7, 8, size, device=device).to(torch.float8_e4m3fn)
        return torch.empty(size, dtype=dtype, device=device).normal_()

    batch = PagedBatch(
        slot_mapping=torch.cat(slots).to(device),
        page_table=table.to(device),
        cu_seqlens_q=torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32, device=device),
        context_lens=torch.tensor(list(context_lens), dtype=torch.int32, device=device),
        max_seqlen_q=max(query_lens),
        max_context_len=max(context_lens),
    )
    q = torch.randn(sum(query_lens), shape.heads, shape.head_dim, dtype=dtype, device=device)
    v_cache = None if shape.latent else cache(shape.value_dim)
    return AttentionInputs(q, cache(shape.head_dim), v_cache, batch)


def head_steps(shape: AttentionShape, tokens: int, like: torch.Tensor) -> HeadSteps:
    """A norm of queries and keys before a rotation, as in Qwen3."""
    dim = shape.head_dim
    angles = torch.arange(tokens, device=like.device)[:, None] * torch.rand(dim // 2).to(
        like.device
    )
    cos, sin = (torch.cat((t, t), -1).to(like.dtype)[:, None] for t in (angles.cos(), angles.sin()))
    weights = (torch.rand(dim, device=like.device).to(like.dtype) for _ in range(2))
    return HeadSteps(HeadNorm(False, 1e-6, 0, *weights), None, Rotation(cos, sin))


def experts(
    count: int,
    hidden: int,
    inner: int,
    device: torch.device,
    dtype: torch.dtype,
    biases: bool = False,
) -> ExpertWeights:
    """Weights whose outputs stay near 1."""

    def weights(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(0, shape[-1] ** -0.5)

    leaves = [weights(count, 2 * inner, hidden), weights(count, hidden, inner)]
    if biases:
        leaves += [weights(count, 2 * inner), weights(count, hidden)]
    return ExpertWeights(*leaves)


def choices(tokens: int, top_k: int, count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Different experts for each token, and what they count."""
    scores = torch.rand(tokens, count, device=device)
    weights, chosen = scores.topk(top_k)
    return chosen, weights / weights.sum(-1, keepdim=True)
