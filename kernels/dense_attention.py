"""Attention with grouped query heads in plain torch: the dense forward, and what paging builds on.

`dense_attention` is causal attention over whole sequences, without a cache (parity checks,
training). `grouped_attention` is the core under it and under the torch paged backend: any mask,
scaled dot-product attention (Vaswani et al., 2017) whose key/value heads are shared by groups of
query heads (GQA: Ainslie et al., 2023). torch's fused kernels (FlashAttention-2: Dao, 2023) do the
work except under a logit soft-cap, which they do not know.

Legend used in shapes: B batch, L query tokens, N key tokens, H query heads, K key/value heads,
G = H / K query heads a key/value head, D head dim of q and k, Dv head dim of v.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention of every token over its own row of the batch; differentiable.

    Args:
        q: [B, L, H, D].
        k: [B, L, K, D], K dividing H; query head h reads key/value head h // G.
        v: [B, L, K, Dv].
        scale: multiplies the logits q·k.
        window: a query sees only keys fewer than this many tokens back (itself included).
        softcap: logits become softcap * tanh(logits / softcap) before the mask (Gemma 2, 2024).

    Returns:
        [B, L, H, Dv] in q's dtype; the softmax is taken in float32 (float64 for float64 input).
    """
    length = q.shape[1]
    if window is None or length <= window:
        return grouped_attention(q, k, v, scale=scale, causal=True, softcap=softcap)
    tokens = torch.arange(length, device=q.device)
    distance = tokens[:, None] - tokens
    mask = (distance >= 0) & (distance < window)
    return grouped_attention(q, k, v, scale=scale, mask=mask[None], softcap=softcap)


def grouped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of q [B, L, H, D] over k [B, N, K, D] and v [B, N, K, Dv] -> [B, L, H, Dv].

    `mask` ([B or 1, L, N] bool) is True where a query sees a key and must leave every query at
    least one; `causal` (which needs L == N, and no mask) lets query i see keys 0..i; with neither,
    every query sees every key. k and v are read as they lie, never repeated for the query heads.
    """
    assert q.shape[2] % k.shape[2] == 0, (q.shape, k.shape)
    assert not causal or (mask is None and q.shape[1] == k.shape[1]), (q.shape, k.shape)
    if softcap is not None:
        return _softcapped_attention(q, k, v, scale, mask, causal, softcap)
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if mask is not None:
        mask = mask[:, None]  # alike for all heads
    if length == 1:
        # A lone query has no causal order to keep, so its query heads stand in as the query tokens
        # of their key/value head: twice as fast on a CPU as one query row a head.
        q = q.view(batch, num_kv_heads, -1, head_dim)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out.reshape(batch, 1, num_heads, -1)
    out = scaled_dot_product_attention(
        q.transpose(1, 2),
        k,
        v,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=num_heads != num_kv_heads,
    )
    return out.transpose(1, 2)


def _softcapped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
    softcap: float,
) -> torch.Tensor:
    """`grouped_attention` written out, with the logits soft-capped before the mask."""
    (batch, length, _, head_dim), num_kv_heads = q.shape, k.shape[2]
    if causal:
        mask = torch.ones(1, length, length, dtype=torch.bool, device=q.device).tril()
    precise = torch.promote_types(q.dtype, torch.float32)
    q_BKGLD = q.unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
    q_rows = q_BKGLD.reshape(batch, num_kv_heads, -1, head_dim).to(precise)
    logits = q_rows @ k.permute(0, 2, 3, 1).to(precise)  # [B, K, G * L, N]
    logits = softcap * torch.tanh(logits * (scale / softcap))
    logits = logits.unflatten(2, (-1, length))
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], float("-inf"))
    weights = logits.softmax(dim=-1).flatten(2, 3).to(v.dtype)
    out = weights @ v.transpose(1, 2)  # [B, K, G * L, Dv]
    return out.unflatten(2, (-1, length)).permute(0, 3, 1, 2, 4).flatten(2, 3)
