"""Which keys a query sees and what bias it adds to them, from the positions of both.

Legend used in shapes: B batch, L query tokens, N key tokens, H query heads.
"""

from __future__ import annotations

import torch

from assembler.kernels.attention_options import AttentionOptions


def visible_keys(
    queries: torch.Tensor, keys: torch.Tensor, window: int | None, chunk: int | None
) -> torch.Tensor:
    """Positions of queries [B, L] and keys [B, N] -> [B, L, N] bool, True where one sees the other.

    A query sees itself and what came before it, within `window` and `chunk`.
    """
    queries, keys = queries[:, :, None], keys[:, None, :]
    distance = queries - keys
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    if chunk is not None:
        visible &= queries // chunk == keys // chunk
    return visible


def logit_mask(
    options: AttentionOptions, queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """What to do to the logits of queries at positions [B, L] over keys at positions [B, N].

    Returns:
        [B, 1, L, N] bool, True where a query sees a key; under ALiBi or sinks [B, H, L, N] of
        `dtype` to be added, -inf where it does not. Sinks are the logits of one more key, the last.
    """
    visible = visible_keys(queries, keys, options.window, options.chunk)[:, None]
    if options.alibi_slopes is None and options.sinks is None:
        return visible
    bias = torch.zeros((), dtype=dtype, device=visible.device)
    if options.alibi_slopes is not None:
        bias = alibi_bias(options, queries, keys, dtype)
    mask = torch.where(visible, bias, float("-inf"))
    if options.sinks is None:
        return mask
    sinks = options.sinks.to(dtype)[:, None, None]
    batch, _, length, _ = visible.shape
    shape = (batch, len(options.sinks), length)
    return torch.cat([mask.expand(*shape, -1), sinks.expand(*shape, 1)], dim=-1)


def alibi_bias(
    options: AttentionOptions, queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """ALiBi's bias of the logits, [B, H, L, N] (rounded: [B, H, 1, N]) of `dtype`."""
    slopes = options.alibi_slopes[:, None, None]
    if options.alibi_rounded:
        rounded = slopes.bfloat16() * keys[:, None, None, :].bfloat16()
        return rounded.to(dtype) * options.scale
    return slopes.to(dtype) * (keys[:, None, :] - queries[:, :, None])[:, None]
