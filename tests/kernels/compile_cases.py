"""Calls of the attention kernels at the shapes of real models, for compiling.

Run them where launches are recorded (see `recorded_launches`), not where Triton interprets. Tiles
depend on the GPU, so these cases are asked for by its architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

import torch

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.fp8 import E4M3
from assembler.kernels.gpu import GPU, GPUS
from assembler.kernels.paged_attention_tiling import Heads
from assembler.kernels.paged_attention_triton import paged_attention_triton
from assembler.kernels.paged_batch import PagedBatch
from assembler.kernels.store_kv_triton import store_kv_triton

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DECODE, PREFILL = (1, 1), (70, 70)
LATENT = {"value_dim": 512}
_PER_HEAD = torch.empty(128)
ALL_OPTIONS = {"softcap": 30.0, "sinks": _PER_HEAD, "alibi_slopes": _PER_HEAD, "window": 128}
ROUNDED = {"alibi_slopes": _PER_HEAD, "alibi_rounded": True}
WIDTHS = (64, 80, 96, 112, 128, 160, 192, 256)
MODEL_HEADS = (
    *(Heads(group, width, width) for group, width in product((1, 2, 4, 7, 8, 12, 16), WIDTHS)),
    *(Heads(group, 192, 128) for group in (1, 8, 16)),
    *(Heads(29, 64, 64), Heads(71, 64, 64), Heads(32, 128, 128), Heads(48, 128, 128)),
    *(Heads(group, 576, 512, latent=True) for group in (16, 32, 64, 128)),
    *(Heads(group, width, width, False, 2, 1) for group, width in product((1, 8), (64, 128))),
    *(Heads(group, width, width, False, 4, 4) for group, width in product((1, 8), (64, 128))),
    Heads(128, 576, 512, True, 2, 1),
)
"""Groups and widths that models have; in 8 bits and in float32 the commonest of them."""


def attend(
    query_lens: tuple[int, ...],
    dtype: torch.dtype,
    head_dim: int,
    group: int,
    *,
    head_dim_v: int | None = None,
    cache_dtype: torch.dtype | None = None,
    splits: int = 1,
    page_size: int = 16,
    kv_heads: int = 8,
    gpu: GPU,
    **options: object,
) -> None:
    """A step of sequences of so many queries, with `group` query heads a key/value head."""
    latent = options.get("value_dim") is not None
    kv_heads = 1 if latent else kv_heads

    def cache(width: int) -> torch.Tensor:
        return torch.empty(8, page_size, kv_heads, width, dtype=cache_dtype or dtype)

    tokens, sequences = sum(query_lens), len(query_lens)
    batch = PagedBatch(
        slot_mapping=torch.zeros(tokens, dtype=torch.int64),
        page_table=torch.zeros(sequences, 16, dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
        context_lens=torch.tensor(query_lens, dtype=torch.int32),
        max_seqlen_q=max(query_lens),
        max_context_len=64,
    )
    q = torch.empty(tokens, kv_heads * group, head_dim, dtype=dtype)
    v_cache = None if latent else cache(head_dim_v or head_dim)
    settings = AttentionOptions(scale=0.1, **options)
    paged_attention_triton(q, cache(head_dim), v_cache, batch, settings, splits=splits, gpu=gpu)


def store(dtype: torch.dtype, cache_dtype: torch.dtype, gpu: GPU) -> None:
    """Keys and values of 8 heads of 128."""
    tokens = torch.empty(3, 8, 128, dtype=dtype)
    cache = torch.empty(4, 16, 8, 128, dtype=cache_dtype)
    store_kv_triton(tokens, tokens, cache, cache, torch.zeros(3).long())


def attention_cases(architecture: str) -> Mapping[str, Callable[[], None]]:
    """What is called, by what a report calls it; the tilings of `MODEL_HEADS` are among them."""
    gpu = GPUS[architecture]
    return {
        **_decodes(partial(attend, DECODE, gpu=gpu)),
        **_prefills(partial(attend, PREFILL, gpu=gpu)),
        "mixed 4 × 128": partial(attend, (1, 70), BF16, 128, 4, gpu=gpu),
        "store_kv, bf16": partial(store, BF16, BF16, gpu),
        "store_kv, bf16 to fp8": partial(store, BF16, E4M3, gpu),
    }


def _decodes(decode: Callable[..., None]) -> dict[str, Callable[[], None]]:
    return {
        "decode 4 × 128": partial(decode, BF16, 128, 4),
        "decode 4 × 128, split": partial(decode, BF16, 128, 4, splits=64),
        "decode 4 × 128, pages of 64": partial(decode, BF16, 128, 4, page_size=64),
        "decode 4 × 128, fp8 cache": partial(decode, BF16, 128, 4, cache_dtype=E4M3),
        "decode 5 × 128, chunks": partial(decode, BF16, 128, 5, chunk=8192),
        "decode 8 × 64, all options, fp16": partial(decode, FP16, 64, 8, **ALL_OPTIONS),
        "decode 8 × 64, fp8 cache": partial(decode, BF16, 64, 8, cache_dtype=E4M3),
        "decode 1 × 80": partial(decode, BF16, 80, 1),
        "decode 1 × 96": partial(decode, BF16, 96, 1),
        "decode 1 × 112": partial(decode, BF16, 112, 1),
        "decode 4 × 160": partial(decode, BF16, 160, 4),
        "decode 1 × 192": partial(decode, BF16, 192, 1),
        "decode 1 × 192/128": partial(decode, BF16, 192, 1, head_dim_v=128),
        "decode 2 × 256": partial(decode, BF16, 256, 2),
        "decode 29 × 64": partial(decode, BF16, 64, 29),
        "decode 32 × 128": partial(decode, BF16, 128, 32),
        "decode 48 × 128": partial(decode, BF16, 128, 48, kv_heads=1),
        "decode 71 × 64": partial(decode, BF16, 64, 71, kv_heads=1),
        "decode 71 × 64, ALiBi rounded": partial(decode, BF16, 64, 71, kv_heads=1, **ROUNDED),
        "decode 4 × 128, fp32": partial(decode, FP32, 128, 4),
        "decode 3 × 64, fp32": partial(decode, FP32, 64, 3),
        "decode latent 16 × 576/512": partial(decode, BF16, 576, 16, **LATENT),
        "decode latent 32 × 576/512": partial(decode, BF16, 576, 32, **LATENT),
        "decode latent 128 × 576/512": partial(decode, BF16, 576, 128, **LATENT),
        "decode latent 128 × 576/512, split": partial(decode, BF16, 576, 128, splits=64, **LATENT),
        "decode latent 128 × 576/512, fp8 cache": partial(
            decode, BF16, 576, 128, cache_dtype=E4M3, **LATENT
        ),
    }


def _prefills(prefill: Callable[..., None]) -> dict[str, Callable[[], None]]:
    return {
        "prefill 4 × 128": partial(prefill, BF16, 128, 4),
        "prefill 4 × 128, split": partial(prefill, BF16, 128, 4, splits=8),
        "prefill 4 × 128, pages of 64": partial(prefill, BF16, 128, 4, page_size=64),
        "prefill 4 × 128, window": partial(prefill, BF16, 128, 4, window=4096),
        "prefill 5 × 128, chunks": partial(prefill, BF16, 128, 5, chunk=8192),
        "prefill 4 × 128, fp8 cache": partial(prefill, BF16, 128, 4, cache_dtype=E4M3),
        "prefill 8 × 64, all options, fp16": partial(prefill, FP16, 64, 8, **ALL_OPTIONS),
        "prefill 8 × 64, fp8 cache": partial(prefill, BF16, 64, 8, cache_dtype=E4M3),
        "prefill 71 × 64, ALiBi rounded": partial(prefill, BF16, 64, 71, kv_heads=1, **ROUNDED),
        "prefill 1 × 80": partial(prefill, BF16, 80, 1),
        "prefill 1 × 96": partial(prefill, BF16, 96, 1),
        "prefill 1 × 112": partial(prefill, BF16, 112, 1),
        "prefill 4 × 160": partial(prefill, BF16, 160, 4),
        "prefill 1 × 192": partial(prefill, BF16, 192, 1),
        "prefill 1 × 192/128": partial(prefill, BF16, 192, 1, head_dim_v=128),
        "prefill 2 × 256": partial(prefill, BF16, 256, 2),
        "prefill 4 × 128, fp32": partial(prefill, FP32, 128, 4),
        "prefill 3 × 64, fp32": partial(prefill, FP32, 64, 3),
        "prefill latent 16 × 576/512": partial(prefill, BF16, 576, 16, **LATENT),
        "prefill latent 128 × 576/512": partial(prefill, BF16, 576, 128, **LATENT),
        "prefill latent 128 × 576/512, fp8 cache": partial(
            prefill, BF16, 576, 128, cache_dtype=E4M3, **LATENT
        ),
    }
