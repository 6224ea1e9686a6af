"""Writing the keys and values of a step into paged KV memory, in plain torch."""

from __future__ import annotations

import torch


@torch.no_grad()
def store_kv_torch(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Write token t's key and value into slot `slot_mapping[t]` of the caches, in place.

    Args:
        k: [T, K, D].
        v: [T, K, Dv].
        k_cache: [P, page_size, K, D], contiguous.
        v_cache: [P, page_size, K, Dv], contiguous.
        slot_mapping: [T] int64, page * page_size + offset; a token with slot -1 is not stored.
    """
    stored = slot_mapping >= 0
    if not bool(stored.all()):
        k, v, slot_mapping = k[stored], v[stored], slot_mapping[stored]
    # `view`, not `flatten`: of a cache that is not contiguous it would write into a copy.
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, slot_mapping, k.to(k_cache.dtype))
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, slot_mapping, v.to(v_cache.dtype))
