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
) -> None:
    """Write token t's key and value into slot `slot_mapping[t]` of the caches, in place.

    Args:
        k: [T, K, D].
        v: [T, K, Dv]; None, like v_cache, where the values are a part of the keys.
        k_cache: [P, page_size, K, D], contiguous.
        v_cache: [P, page_size, K, Dv], contiguous.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
    """
    stored = slot_mapping >= 0
    kept = None if bool(stored.all()) else stored.nonzero().flatten()
    for tokens, cache in ((k, k_cache), (v, v_cache)):
        if tokens is None or cache is None:
            assert tokens is cache
            continue
        slots = slot_mapping
        if kept is not None:
            tokens, slots = tokens[kept], slots[kept]
        # `view`, not `flatten`: of a cache that is not contiguous it would write into a copy.
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, tokens.to(cache.dtype))
