"""Writing the keys and values of a step into paged KV memory, in plain torch."""

from __future__ import annotations

import torch


@torch.no_grad()
def store_kv_torch(
    k: torch.Tensor,
    v: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor | None,
    slot_mapping: torch.Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Write token t's key and value into slot `slot_mapping[t]` of the caches, in place.

    Args:
        k: [T, K, D].
        v: [T, K, Dv]; None, like v_cache, where the values are a part of the keys.
        k_cache: [P, page_size, K, D], contiguous.
        v_cache: [P, page_size, K, Dv], contiguous.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
        k_scale, v_scale: what 1 in caches of float8 e4m3 stands for: they hold k / k_scale, cut to
            what fits (448). Caches of other dtypes hold k and v as they are.
    """
    stored = slot_mapping >= 0
    kept = None if bool(stored.all()) else stored.nonzero().flatten()
    for tokens, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        if tokens is None or cache is None:
            assert tokens is cache
            continue
        slots = slot_mapping
        if kept is not None:
            tokens, slots = tokens[kept], slots[kept]
        if cache.dtype == torch.float8_e4m3fn:  # torch copies these by index as bytes only
            tokens, cache = quantise(tokens, scale).view(torch.uint8), cache.view(torch.uint8)
        # `view`, not `flatten`: of a cache that is not contiguous it would write into a copy.
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, tokens.to(cache.dtype))


def quantise(numbers: torch.Tensor, scale: float) -> torch.Tensor:
    """`numbers / scale` in float8 e4m3, to nearest even; what is too large is cut to 448."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    return (numbers.float() / scale).clamp(-largest, largest).to(torch.float8_e4m3fn)
