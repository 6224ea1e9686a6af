"""Token embeddings times a factor: in plain torch, and who computes them where."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from assembler.kernels.fused import runs_fused


def embed(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    scale: float = 1.0,
    factor: float = 1.0,
    share: range | None = None,
) -> torch.Tensor:
    """`embed_torch`, in one pass where a fused kernel runs (see `fused`).

    There a token that nobody has gives zeros too, where torch fails.
    """
    if runs_fused(weight) and 1.0 in (scale, factor):
        # Triton is imported by those who use it only: it is not there on every platform.
        from assembler.kernels.embedding_triton import embed_triton

        rounded = torch.tensor(scale, dtype=weight.dtype, device="cpu").item()
        return embed_triton(tokens, weight, rounded * factor, share.start if share else 0)
    return embed_torch(tokens, weight, scale, factor, share)


def embed_torch(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    scale: float = 1.0,
    factor: float = 1.0,
    share: range | None = None,
) -> torch.Tensor:
    """Embeddings of token ids [...] -> [..., width], times `scale`, times `factor`.

    Args:
        weight: [V, width].
        scale: rounded to the weight's dtype before it multiplies (Gemma).
        factor: as it is; each product is rounded.
        share: the tokens that the rows of `weight` are for; others get zeros. None: all there are.
    """
    if share is None:
        x = F.embedding(tokens, weight)
    else:
        local = tokens - share.start
        elsewhere = (local < 0) | (local >= len(share))
        x = F.embedding(local.masked_fill(elsewhere, 0), weight)
        x = x.masked_fill(elsewhere[..., None], 0.0)
    if scale != 1.0:
        x = x * torch.tensor(scale, dtype=weight.dtype, device="cpu")
    return x if factor == 1.0 else x * factor
