"""Attention by the definition: one token and one head at a time, in float64, with Python loops.

Also makes the paged steps that kernels are tested on. All memory that no query may read is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.paged_batch import PagedBatch


def attend_token(q_HD, keys_NKD, values_NKD, options):
    """The query of the last of N tokens over those tokens -> [H, Dv] float64."""
    num_tokens, num_kv_heads, _ = keys_NKD.shape
    place = num_tokens - 1
    seen = [n for n in range(num_tokens) if sees(place, n, options)]
    heads = []
    for head, query in enumerate(q_HD.double()):
        kv_head = head // (q_HD.shape[0] // num_kv_heads)
        logits = [float(query @ keys_NKD[n, kv_head].double()) * options.scale for n in seen]
        if options.softcap is not None:
            logits = [options.softcap * math.tanh(logit / options.softcap) for logit in logits]
        if options.alibi_slopes is not None:
            biases = (alibi(options.alibi_slopes[head], place, n, options) for n in seen)
            logits = [logit + bias for logit, bias in zip(logits, biases, strict=True)]
        sink = [] if options.sinks is None else [float(options.sinks[head])]
        weights = [math.exp(logit - max(logits + sink)) for logit in logits + sink]
        values = values_NKD[seen, kv_head].double()
        weighted = [weight * value for weight, value in zip(weights, values, strict=bool(not sink))]
        heads.append(torch.stack(weighted).sum(0) / sum(weights))
    return torch.stack(heads)


def sees(query, key, options):
    """Whether the query at one position sees the key at another that is not later."""
    if options.window is not None and query - key >= options.window:
        return False
    return options.chunk is None or query // options.chunk == key // options.chunk


def alibi(slope, query, key, options):
    """The bias of the key at one position for the query at another."""
    if not options.alibi_rounded:
        return float(slope) * (key - query)
    product = slope.bfloat16() * torch.tensor(key).bfloat16()
    return float(product) * options.scale


def head_options(heads, *names, **options) -> AttentionOptions:
    """Options with a random number a head for each of `names` (sinks, alibi_slopes)."""
    random = torch.Generator().manual_seed(heads)
    drawn = {name: 0.2 + torch.rand(heads, generator=random) for name in names}
    return AttentionOptions(**{"scale": 0.3, **drawn, **options})


@dataclass
class PagedStep:
    """Inputs of a paged attention, and the same keys and values laid out plainly."""

    q: torch.Tensor  # [T, H, D]
    k_cache: torch.Tensor  # [P, page_size, K, D]
    v_cache: torch.Tensor | None  # [P, page_size, K, Dv]
    batch: PagedBatch
    keys: list[torch.Tensor]  # a sequence each, [context, K, D]
    values: list[torch.Tensor]  # a sequence each, [context, K, Dv]

    def expected(self, options: AttentionOptions) -> torch.Tensor:
        """What attention must give, [T, H, Dv] float64."""
        out = []
        starts = self.batch.cu_seqlens_q.tolist()
        for s, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            query_len = starts[s + 1] - starts[s]
            for i, query in enumerate(self.q[starts[s] : starts[s + 1]]):
                seen = len(keys) - query_len + i + 1
                out.append(attend_token(query, keys[:seen], values[:seen], options))
        return torch.stack(out)


def make_step(
    query_lens: list[int],
    context_lens: list[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    head_dim_v: int | None = None,
    latent: bool = False,
    page_size: int = 4,
    window: int | None = None,
    chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PagedStep:
    """A random step whose sequences lie in shuffled pages of a cache that is NaN elsewhere.

    With a window or chunks, tokens that no query of their sequence sees are NaN as well. In a
    latent cache the values are the first `head_dim_v` numbers of the keys.
    """
    sight = AttentionOptions(scale=1.0, window=window, chunk=chunk)
    random = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=random).to(dtype)

    head_dim_v = head_dim_v or head_dim
    pages_of = [math.ceil(context / page_size) for context in context_lens]
    num_pages = sum(pages_of) + 3
    shuffled = torch.randperm(num_pages, generator=random).tolist()
    page_table = torch.zeros(len(context_lens), max(pages_of) + 1, dtype=torch.int32)
    k_cache = torch.full((num_pages, page_size, kv_heads, head_dim), math.nan, dtype=dtype)
    v_cache = torch.full((num_pages, page_size, kv_heads, head_dim_v), math.nan, dtype=dtype)
    keys, values, slots = [], [], []
    for s, (query_len, context) in enumerate(zip(query_lens, context_lens, strict=True)):
        pages = [shuffled.pop() for _ in range(pages_of[s])]
        page_table[s, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        keys.append(randn(context, kv_heads, head_dim))
        drawn = randn(context, kv_heads, head_dim_v)
        values.append(keys[s][..., :head_dim_v] if latent else drawn)
        for t in range(context):
            if not any(sees(query, t, sight) for query in range(context - query_len, context)):
                continue
            k_cache[pages[t // page_size], t % page_size] = keys[s][t]
            v_cache[pages[t // page_size], t % page_size] = values[s][t]
        slots += [
            pages[t // page_size] * page_size + t % page_size
            for t in range(context - query_len, context)
        ]
    batch = PagedBatch(
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        page_table=page_table,
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        context_lens=torch.tensor(context_lens, dtype=torch.int32),
        max_seqlen_q=max(query_lens),
        max_context_len=max(context_lens),
    )
    q = randn(sum(query_lens), heads, head_dim)
    return PagedStep(q, k_cache, None if latent else v_cache, batch, keys, values)
