"""Attention with grouped query heads in plain torch: the dense forward, and what paging builds on.

`dense_attention` is causal attention over whole sequences, without a cache (parity checks,
training). `grouped_attention` is the core under it and under the torch paged backend: scaled
dot-product attention (Vaswani et al., 2017) whose key/value heads are shared by groups of query
heads (GQA: Ainslie et al., 2023). torch's fused kernels (FlashAttention-2: Dao, 2023) do the work
except under a logit soft-cap, which they do not know.

Legend used in shapes: B batch, L query tokens, N key tokens, H query heads, K key/value heads,
G = H / K query heads a key/value head, D head dim of q and k, Dv head dim of v.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from assembler.kernels.attention_mask import logit_mask, visible_keys
from assembler.kernels.attention_options import AttentionOptions

# Logits (or their masks) made at a time where each head has its own: 16 MiB in float32.
MAX_LOGITS_PER_BLOCK = 1 << 22


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, options: AttentionOptions
) -> torch.Tensor:
    """Causal attention of every token over its own row of the batch; differentiable.

    Args:
        q: [B, L, H, D].
        k: [B, L, K, D], K dividing H; query head h reads key/value head h // G.
        v: [B, L, K, Dv]; None under `options.value_dim`.
        options: scale and all that attention may do besides.

    Returns:
        [B, L, H, Dv] in q's dtype; the softmax is taken in float32 (float64 for float64 input).
    """
    length = q.shape[1]
    positions = torch.arange(length, device=q.device)[None]
    if needs_logits(options):
        if options.sinks is not None:
            k, v = (None if t is None else pad(t, (0, 0, 0, 0, 0, 1)) for t in (k, v))
        return biased_attention(q, k, v, options, positions, positions)
    if options.reach is None or length <= options.reach:
        return grouped_attention(q, k, v, options, causal=True)
    mask = visible_keys(positions, positions, options.window, options.chunk)[:, None]
    return grouped_attention(q, k, v, options, mask=mask)


def needs_logits(options: AttentionOptions) -> bool:
    """Whether the heads' logits differ in more than q·k: such attention is `biased_attention`."""
    return any(
        option is not None for option in (options.softcap, options.sinks, options.alibi_slopes)
    )


def biased_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    options: AttentionOptions,
    queries: torch.Tensor,
    keys: torch.Tensor,
) -> torch.Tensor:
    """Attention of q at positions `queries` [B or 1, L] over keys at positions `keys` [B or 1, N].

    q, k, v and the result as in `grouped_attention`; under `options.sinks`, k and v have one more
    token than `keys`, the last one, and it is zero. The logits or masks of all heads are never in
    memory together: a block of queries is attended at a time.
    """
    batch, length, num_heads, _ = q.shape
    precise = torch.promote_types(q.dtype, torch.float32)
    rows = max(1, MAX_LOGITS_PER_BLOCK // (batch * num_heads * k.shape[1]))
    blocks = []
    for start in range(0, length, rows):
        mask = logit_mask(options, queries[:, start : start + rows], keys, precise)
        blocks.append(grouped_attention(q[:, start : start + rows], k, v, options, mask=mask))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def grouped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    options: AttentionOptions,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Attention of q [B, L, H, D] over k [B, N, K, D] and v [B, N, K, Dv] -> [B, L, H, Dv].

    Of the options it follows scale, softcap and value_dim (v is None then); the others have to be
    in `mask` ([B or 1, H or 1, L, N]: bool, True where a query sees a key, or to be added to the
    logits), which must leave every query a key. `causal` (which needs L == N, and no mask) lets
    query i see keys 0..i; with neither, every query sees every key. k and v are read as they lie,
    never repeated for the query heads.
    """
    assert q.shape[2] % k.shape[2] == 0, (q.shape, k.shape)
    assert not causal or (mask is None and q.shape[1] == k.shape[1]), (q.shape, k.shape)
    assert (v is None) == (options.value_dim is not None)
    if options.softcap is not None:
        assert not causal
        v = k[..., : options.value_dim] if v is None else v
        return _softcapped_attention(q, k, v, options.scale, options.softcap, mask)
    if v is None:  # to attend to all of the keys is faster than what torch does for other widths
        return _fused_attention(q, k, k, options.scale, mask, causal)[..., : options.value_dim]
    head_dim, value_dim = k.shape[3], v.shape[3]
    if head_dim != value_dim:
        width = max(head_dim, value_dim)
        q, k, v = (pad(t, (0, width - t.shape[3])) for t in (q, k, v))
    return _fused_attention(q, k, v, options.scale, mask, causal)[..., :value_dim]


def _fused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """`grouped_attention` by torch's fused kernels, which want all widths alike."""
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if length == 1:
        # A lone query has no causal order to keep, so its query heads stand in as the query tokens
        # of their key/value head: twice as fast on a CPU as one query row a head.
        q = q.reshape(batch, num_kv_heads, -1, head_dim)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(mask.shape[0], num_kv_heads, -1, mask.shape[3])
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
    softcap: float,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """`grouped_attention` written out, with the logits soft-capped before the mask."""
    (batch, length, _, head_dim), num_kv_heads = q.shape, k.shape[2]
    precise = torch.promote_types(q.dtype, torch.float32)
    q_BKGLD = q.unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
    q_rows = q_BKGLD.reshape(batch, num_kv_heads, -1, head_dim).to(precise)
    logits = q_rows @ k.permute(0, 2, 3, 1).to(precise)  # [B, K, G * L, N]
    logits = softcap * torch.tanh(logits * (scale / softcap))
    if mask is not None:
        logits = logits.unflatten(2, (-1, length)).flatten(1, 2)  # [B, H, L, N]
        if mask.dtype == torch.bool:
            logits = logits.masked_fill(~mask, float("-inf"))
        else:
            logits = logits + mask
        logits = logits.unflatten(1, (num_kv_heads, -1)).flatten(2, 3)
    weights = logits.softmax(dim=-1).to(v.dtype)
    out = weights @ v.transpose(1, 2)  # [B, K, G * L, Dv]
    return out.unflatten(2, (-1, length)).permute(0, 3, 1, 2, 4).flatten(2, 3)
