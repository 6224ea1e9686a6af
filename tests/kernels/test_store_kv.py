"""Both backends write each token's key and value to its slot and touch nothing else."""

from __future__ import annotations

import pytest
import torch

from assembler.kernels.dispatch import attention_backend


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    return attention_backend(request.param, "cpu")


@pytest.mark.parametrize("slots", [[7, 0, 19, 4, 12], [7, -1, 19, -1, -1], [-1] * 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_writes_the_slots_and_only_those(backend, slots, dtype):
    random = torch.Generator().manual_seed(0)
    k_cache = torch.randn(5, 4, 3, 40, generator=random).to(dtype)
    v_cache = torch.randn(5, 4, 3, 24, generator=random).to(dtype)
    k = torch.randn(5, 3, 40, generator=random).to(dtype)
    v = torch.randn(5, 3, 24, generator=random).to(dtype)
    k_want, v_want = k_cache.clone(), v_cache.clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            k_want[slot // 4, slot % 4] = k[token]
            v_want[slot // 4, slot % 4] = v[token]
    backend.store_kv(k, v, k_cache, v_cache, torch.tensor(slots))
    assert torch.equal(k_cache, k_want) and torch.equal(v_cache, v_want)


def test_takes_slices_of_a_fused_projection_and_casts_to_the_cache(backend):
    fused = torch.randn(3, 2 * 2 * 16, generator=torch.Generator().manual_seed(0))
    k, v = (part.unflatten(1, (2, 16)) for part in fused.chunk(2, dim=1))
    k_cache, v_cache = (torch.zeros(2, 4, 2, 16, dtype=torch.float16) for _ in range(2))
    backend.store_kv(k, v, k_cache, v_cache, torch.tensor([6, 1, 3]))
    assert torch.equal(k_cache.view(8, 2, 16)[[6, 1, 3]], k.half())
    assert torch.equal(v_cache.view(8, 2, 16)[[6, 1, 3]], v.half())
    assert not k_cache.view(8, 2, 16)[[0, 2, 4, 5, 7]].any()


def test_no_tokens_at_all(backend):
    cache = torch.ones(1, 2, 1, 16)
    backend.store_kv(cache[0, :0], cache[0, :0], cache, cache, torch.empty(0, dtype=torch.int64))
    assert cache.eq(1).all()


def test_a_latent_cache_has_no_values(backend):
    cache = torch.zeros(2, 4, 1, 40)
    k = torch.randn(3, 1, 40, generator=torch.Generator().manual_seed(0))
    backend.store_kv(k, None, cache, None, torch.tensor([6, -1, 3]))
    assert torch.equal(cache.view(8, 1, 40)[[6, 3]], k[[0, 2]])
    assert not cache.view(8, 1, 40)[[0, 1, 2, 4, 5, 7]].any()
