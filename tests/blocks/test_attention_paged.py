"""RopeAttn over paged KV memory gives what the dense forward gives, however the text is cut."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import pytest
import torch
from block_harness import build_context, fill, randn

from assembler.blocks.alibi import AlibiAttn
from assembler.blocks.attention import RopeAttn
from assembler.blocks.attention_gate import OutputGate
from assembler.blocks.context import ForwardContext
from assembler.blocks.norms import RMSNorm
from assembler.blocks.position_scale import PositionScale
from assembler.blocks.qk_norm import QKNorm
from assembler.blocks.rope import RopeSettings
from assembler.kernels.dispatch import attention_backend
from assembler.kernels.paged_batch import PagedBatch

HIDDEN, PAGE_SIZE = 40, 4
PAGES = ([5, 1, 7], [2, 6, 4])  # of each sequence, in order and scattered
LENGTHS = (11, 6)
VARIANTS = {
    "plain": {},
    "partial": {"rope": RopeSettings(partial=0.5), "qkv_bias": True, "o_bias": True},
    "qk_norm_window": {"qk_norm": partial(QKNorm, norm=partial(RMSNorm, eps=2e-3)), "window": 3},
    "softcap": {"softcap": 1.5, "scale": 0.3, "rope": RopeSettings(style="interleaved")},
    "nope": {"rope": None},
    "chunk_scale": {"chunk": 4, "position_scale": PositionScale(beta=0.7, length=3, shift=1)},
    "sinks_gate": {"sinks": True, "window": 3, "gate": OutputGate, "clip_qkv": 0.4},
}
ALIBI = {"alibi": {"clip_qkv": 0.4}, "alibi_rounded": {"rounded": True}}


def paged_context(steps: list[tuple[int, int]], caches: list) -> ForwardContext:
    """A step over tokens start..stop of each sequence, given as (start, stop) pairs."""
    slots = [
        PAGES[s][t // PAGE_SIZE] * PAGE_SIZE + t % PAGE_SIZE
        for s, (start, stop) in enumerate(steps)
        for t in range(start, stop)
    ]
    counts = [stop - start for start, stop in steps]
    batch = PagedBatch(
        slot_mapping=torch.tensor(slots),
        page_table=torch.tensor(PAGES, dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
        context_lens=torch.tensor([stop for _, stop in steps], dtype=torch.int32),
        max_seqlen_q=max(counts),
        max_context_len=max(stop for _, stop in steps),
    )
    return ForwardContext(
        positions=torch.cat([torch.arange(*step) for step in steps]),
        sequence_lengths=torch.cat(
            [torch.full((n,), length) for n, length in zip(counts, LENGTHS, strict=True)]
        ),
        paged=batch,
        attention=attention_backend("torch", torch.device("cpu")),
        kv_caches=caches,
    )


@pytest.mark.parametrize("name", [*VARIANTS, *ALIBI])
def test_prefill_in_chunks_and_decode_equal_dense(name):
    block, fields = (AlibiAttn, ALIBI[name]) if name in ALIBI else (RopeAttn, VARIANTS[name])
    if block is RopeAttn:
        fields = {"rope": RopeSettings(), **fields}
    heads = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8}
    attn = fill(block(build_context(HIDDEN), **heads, **fields))
    attn.cache_index = 1
    spec = attn.cache_spec()
    shape = (8, PAGE_SIZE, spec.num_kv_heads, spec.head_dim)
    untouched = torch.zeros(shape), torch.zeros(shape)
    caches = [untouched, (torch.zeros(shape), torch.zeros(shape))]
    texts = [randn(length, HIDDEN, seed=s) for s, length in enumerate(LENGTHS)]
    # A chunk of each; the rest of the first but one with one decode; then both decode.
    plan = [[(0, 5), (0, 4)], [(5, 10), (4, 5)], [(10, 11), (5, 6)]]
    results: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for steps in plan:
            x = torch.cat([text[slice(*step)] for text, step in zip(texts, steps, strict=True)])
            out = attn(x, paged_context(steps, caches))
            for s, piece in enumerate(out.split([stop - start for start, stop in steps])):
                results[s].append(piece)
        for text, pieces in zip(texts, results, strict=True):
            dense = attn(text[None], ForwardContext.dense(len(text)))[0]
            torch.testing.assert_close(torch.cat(pieces), dense, rtol=1e-5, atol=1e-5)
    assert not any(cache.any() for cache in untouched)


def test_a_block_that_no_builder_numbered_does_not_run_paged():
    attn = fill(RopeAttn(build_context(HIDDEN), num_heads=2, head_dim=8))
    cache = torch.zeros(8, PAGE_SIZE, 2, 8)
    ctx = paged_context([(0, 2), (0, 2)], [(cache, cache.clone())])
    with pytest.raises(AttributeError, match="cache_index"):
        attn(randn(4, HIDDEN), ctx)
