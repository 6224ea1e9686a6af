"""Attention over paged KV memory in plain torch: the reference, and the backend of CPUs.

PagedAttention (Kwon et al., 2023, vLLM) keeps each sequence's keys and values in pages scattered
over a shared cache. Here the tokens a query may see are gathered by slot into a dense [S, N, K, D]
tensor and attended with torch's fused kernels. All decoding sequences of a step are attended
together, and so are prefilling ones of equal query length: the work is a loop over a few groups of
sequences, never over sequences.

Which sequences go together, their slots and their masks are alike for all layers of a step (that
see the same keys); they are worked out once and kept on the `PagedBatch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from assembler.kernels.attention_mask import visible_keys
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dense_attention import biased_attention, grouped_attention, needs_logits
from assembler.kernels.paged_batch import PagedBatch

# Keys (padding included) gathered at a time: larger gathers fall out of the CPU's caches.
MAX_KEYS_PER_GROUP = 4096


@dataclass(frozen=True)
class _Group:
    """Sequences of one query length, attended together: S of them, L query and N key tokens each.

    Key j of sequence s is the token at position first[s] + j of its context, first[s] being the
    first one that any of its queries may see. Sequences with fewer than N keys are padded with
    their own last token, so that nothing unwritten is ever read (0 * NaN is NaN), and `mask` and
    `keys` hide the padding. Under sinks every sequence is given one more of them.
    """

    rows: torch.Tensor | None  # [S * L] int64 rows of q; None: all of them in order
    slots: torch.Tensor  # [S * N] int64 slots of the cache
    size: int  # S
    queries: torch.Tensor  # [S, L] positions
    keys: torch.Tensor  # [S, N] positions; behind the last query's where they are padding
    mask: torch.Tensor | None  # [S, 1, L, N] bool, True where a query sees a key
    causal: bool  # query i sees keys 0..i, no mask needed


class GatherBuffers:
    """Memory to gather into, kept from call to call.

    A CPU allocator gives large blocks back to the system as soon as they are free, and the page
    faults of getting them anew at each layer cost several times as much as the copy.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def gather(
        self, name: str, cache: torch.Tensor, slots: torch.Tensor, num_sequences: int
    ) -> torch.Tensor:
        """`slots` [S * N] of a cache [P, page_size, K, D] -> [S, N, K, D].

        The result is valid until the next gather of that name. Of 8-bit caches it has the bits.
        """
        if cache.dtype == torch.float8_e4m3fn:  # which torch cannot gather
            cache = cache.view(torch.uint8)
        num_keys, num_kv_heads, head_dim = len(slots), cache.shape[2], cache.shape[3]
        size = num_keys * num_kv_heads * head_dim
        key = (name, cache.dtype, cache.device)
        if key not in self._buffers or self._buffers[key].numel() < size:
            with torch.inference_mode(False):  # usable inside and outside of inference mode
                # Contexts grow by a token a step, so the buffer grows in powers of two.
                self._buffers[key] = cache.new_empty(1 << (size - 1).bit_length())
        out = self._buffers[key][:size].view(num_keys, num_kv_heads, head_dim)
        torch.index_select(cache.view(-1, num_kv_heads, head_dim), 0, slots, out=out)
        return out.view(num_sequences, -1, num_kv_heads, head_dim)


@torch.no_grad()
def paged_attention_torch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    batch: PagedBatch,
    options: AttentionOptions,
    *,
    buffers: GatherBuffers | None = None,
) -> torch.Tensor:
    """Causal attention of each sequence's query tokens over what its pages hold.

    Args:
        q: [T, H, D], the query tokens of all sequences in a row; their keys are stored already.
        k_cache: [P, page_size, K, D], contiguous; of float8 e4m3, 1 stands for `options.k_scale`.
        v_cache: [P, page_size, K, Dv], contiguous; None under `options.value_dim`.
        batch: which rows and pages belong to which sequence.
        options: scale and all that attention may do besides.
        buffers: memory to gather into, from an earlier call.

    Returns:
        [T, H, Dv] in q's dtype. Caches carry no gradients, so neither does the result.
    """
    buffers = buffers or GatherBuffers()
    page_size = k_cache.shape[1]
    sight = _Sight(options.window, options.chunk, options.sinks is not None)
    groups = batch.once(
        (paged_attention_torch, page_size, sight),
        lambda: [
            _make_group(batch, sequences, query_len, page_size, sight)
            for query_len, sequences in _sequences_by_group(batch, sight)
        ],
    )

    def gather(name: str, cache: torch.Tensor, scale: float, group: _Group) -> torch.Tensor:
        gathered = buffers.gather(name, cache, group.slots, group.size)
        if cache.dtype == torch.float8_e4m3fn:
            gathered = gathered.view(cache.dtype).to(q.dtype)
            return gathered if scale == 1 else gathered * scale
        return gathered

    def attend(group: _Group) -> torch.Tensor:
        q_rows = q if group.rows is None else q.index_select(0, group.rows)
        q_rows = q_rows.unflatten(0, (group.size, -1))
        k = gather("k", k_cache, options.k_scale, group)
        v = None if v_cache is None else gather("v", v_cache, options.v_scale, group)
        if sight.sink:
            for gathered in (k, v):
                if gathered is not None:
                    gathered[:, -1] = 0
        if needs_logits(options):
            out = biased_attention(q_rows, k, v, options, group.queries, group.keys)
        else:
            out = grouped_attention(q_rows, k, v, options, mask=group.mask, causal=group.causal)
        return out.flatten(0, 1)

    if len(groups) == 1 and groups[0].rows is None:
        return attend(groups[0])
    out = q.new_zeros(*q.shape[:2], options.value_dim or v_cache.shape[3])
    for group in groups:
        out.index_copy_(0, group.rows, attend(group))
    return out


@dataclass(frozen=True)
class _Sight:
    """Which keys layers read: those of one step that see the same share their groups."""

    window: int | None
    chunk: int | None
    sink: bool  # one more key a sequence

    def first(self, query: torch.Tensor) -> torch.Tensor:
        """The first key that queries at these positions see."""
        first = torch.zeros_like(query)
        if self.window is not None:
            first = first.maximum(query - self.window + 1)
        if self.chunk is not None:
            first = first.maximum(query - query % self.chunk)
        return first


def _sequences_by_group(batch: PagedBatch, sight: _Sight) -> Iterator[tuple[int, list[int]]]:
    """Yield (query length, its sequences in ascending order); sequences of no query are in none.

    Sequences are taken by the number of keys they read, so that those padded to a common length
    differ little when they do not all fit into one group.
    """
    query_lens = batch.cu_seqlens_q.diff()
    key_counts = batch.context_lens - sight.first(batch.context_lens - query_lens)
    ascending = sorted(
        zip(query_lens.tolist(), key_counts.tolist(), range(len(query_lens)), strict=True)
    )
    group: list[int] = []
    group_query_len = 0
    for query_len, key_count, sequence in ascending:
        overfull = (len(group) + 1) * key_count > MAX_KEYS_PER_GROUP
        if group and (query_len != group_query_len or overfull):
            yield group_query_len, sorted(group)
            group = []
        if query_len > 0:
            group.append(sequence)
            group_query_len = query_len
    if group:
        yield group_query_len, sorted(group)


def _make_group(
    batch: PagedBatch, sequences: list[int], query_len: int, page_size: int, sight: _Sight
) -> _Group:
    """Lay out `sequences`, which all have `query_len` query tokens, for attention in one go."""
    device = batch.page_table.device
    chosen = torch.tensor(sequences, device=device)
    context = batch.context_lens[chosen].long()[:, None]  # [S, 1]
    queries = context - query_len + torch.arange(query_len, device=device)  # [S, L]
    first = sight.first(queries[:, :1])
    num_keys = int((context - first).max())
    keys = first + torch.arange(num_keys, device=device)  # [S, N]
    gathered = first + torch.arange(num_keys + sight.sink, device=device)
    stored = gathered.minimum(context - 1)
    pages = batch.page_table[chosen].gather(1, stored // page_size)
    slots = pages.long() * page_size + stored % page_size

    rows = batch.cu_seqlens_q[chosen].long()[:, None] + torch.arange(query_len, device=device)
    covers_all = len(sequences) * query_len == batch.slot_mapping.shape[0]
    visible = visible_keys(queries, keys, sight.window, sight.chunk)
    causal = query_len > 1 and bool((context == query_len).all())
    causal = causal and bool((visible.sum(2) == queries + 1).all())
    return _Group(
        rows=None if covers_all else rows.flatten(),
        slots=slots.flatten(),
        size=len(sequences),
        queries=queries,
        keys=keys,
        mask=None if causal or bool(visible.all()) else visible[:, None],
        causal=causal,
    )
