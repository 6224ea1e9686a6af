"""A stand-in for the package flash-attn 2.8.3: its two functions over pages, in plain torch.

Signatures, layouts and checks are the package's (`flash_attn_interface.py`, `flash_api.cpp`); the
masks are written as its documentation states them, counted from the bottom right corner.
"""

from __future__ import annotations

from itertools import pairwise

import torch

__version__ = "2.8.3.post2"


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """q [total, H, D] over pages k, v [P, page, K, D] -> [total, H, D]."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    _check(q, k, v, alibi_slopes, block_table)
    starts, ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert max_seqlen_q >= max(b - a for a, b in pairwise(starts))
    out = torch.empty_like(q)
    for s in range(len(starts) - 1):
        length = ends[s + 1] - ends[s]
        assert length <= max_seqlen_k
        rows = slice(starts[s], starts[s + 1])
        out[rows] = _attend(
            q[rows], _pages(k, block_table[s], length), _pages(v, block_table[s], length),
            softmax_scale, causal, window_size, softcap, alibi_slopes,
        )  # fmt: skip
    return out


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    """q [S, L, H, D] over the first `cache_seqlens` tokens of pages -> [S, L, H, D]."""
    assert cache_seqlens.dtype == torch.int32 and q.dim() == 4
    _check(q, k_cache, v_cache, alibi_slopes, block_table)
    out = torch.empty_like(q)
    for s, length in enumerate(cache_seqlens.tolist()):
        keys, values = (_pages(cache, block_table[s], length) for cache in (k_cache, v_cache))
        out[s] = _attend(
            q[s], keys, values, softmax_scale, causal, window_size, softcap, alibi_slopes
        )
    return out


def _check(q, k, v, alibi_slopes, block_table):
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.float16, torch.bfloat16)
    assert k.shape == v.shape and k.shape[1] % 256 == 0, "page size"
    assert q.shape[-1] == k.shape[-1] <= 256 and q.shape[-1] % 8 == 0
    assert block_table.dtype == torch.int32 and block_table.stride(-1) == 1
    assert alibi_slopes is None or alibi_slopes.dtype == torch.float32


def _pages(cache, table, length):
    pages = table[: -(-length // cache.shape[1])].long()
    return cache[pages].flatten(0, 1)[:length]


def _attend(q, k, v, scale, causal, window, softcap, slopes):
    """[L, H, D] of one sequence of N keys, in float64."""
    (length, heads, _), num_keys = q.shape, len(k)
    group = heads // k.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(length)[:, None] + num_keys - length
    keys = torch.arange(num_keys)[None]
    if slopes is not None:
        scores = scores - slopes.double()[:, None, None] * (place - keys).abs()
    left, right = window
    right = 0 if causal else right
    hidden = torch.zeros(length, num_keys, dtype=torch.bool)
    if left >= 0:
        hidden |= keys < place - left
    if right >= 0:
        hidden |= keys > place + right
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
