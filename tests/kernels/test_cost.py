"""The cost model: counted by hand for small steps, and known ratios for large ones."""

from __future__ import annotations

import pytest

from assembler.kernels.cost import (
    H200,
    AttentionShape,
    Cost,
    Roof,
    grouped_mlp_cost,
    linear_cost,
    merge_splits_cost,
    paged_attention_cost,
    routing_cost,
    rowwise_cost,
    store_kv_cost,
)

QWEN3_8B = AttentionShape(heads=32, kv_heads=8, head_dim=128)
LATENT = AttentionShape(heads=128, kv_heads=1, head_dim=576, head_dim_v=512, latent=True)


def count_pairs(query_len, context_len, window):
    first = context_len - query_len
    return sum(
        1
        for query in range(first, context_len)
        for key in range(query + 1)
        if window is None or query - key < window
    )


@pytest.mark.parametrize("window", [None, 1, 4, 9, 100])
@pytest.mark.parametrize(("query_len", "context_len"), [(1, 1), (1, 12), (5, 5), (4, 12), (12, 12)])
def test_pairs_of_queries_and_keys(query_len, context_len, window):
    shape = AttentionShape(heads=1, kv_heads=1, head_dim=1, head_dim_v=1)
    cost = paged_attention_cost(shape, [query_len], [context_len], window)
    assert cost.flops == 4 * count_pairs(query_len, context_len, window)
    first = context_len - query_len
    keys = context_len - max(0, first - window + 1) if window else context_len
    assert cost.bytes == 2 * (2 * keys + 2 * query_len)


def test_a_sequence_without_queries_costs_nothing():
    one = paged_attention_cost(QWEN3_8B, [1], [100])
    assert paged_attention_cost(QWEN3_8B, [0, 1], [50, 100]) == one


def test_decode_is_bound_by_memory_and_prefill_by_the_matrix_units():
    decode = paged_attention_cost(QWEN3_8B, [1] * 64, [4096] * 64)
    prefill = paged_attention_cost(QWEN3_8B, [8192], [8192])
    assert decode.bound(H200) == "memory" and prefill.bound(H200) == "compute"
    cache = 64 * 4096 * 2 * 8 * 128 * 2
    assert cache < decode.bytes < 1.001 * cache
    assert prefill.flops == pytest.approx(4 * 32 * 128 * 8192**2 / 2, rel=1e-3)
    assert prefill.floor_seconds(H200) == prefill.flops / H200.flops_per_second


def test_latents_shared_by_128_heads_are_bound_by_the_matrix_units():
    """242 operations a byte: more than an H200 has bandwidth to feed (206)."""
    cost = paged_attention_cost(LATENT, [1] * 32, [8192] * 32)
    assert cost.flops / cost.bytes == pytest.approx(242, rel=0.05)
    assert cost.bound(H200) == "compute"


def test_a_cache_of_8_bits_halves_what_decode_reads():
    eight = AttentionShape(heads=32, kv_heads=8, head_dim=128, cache_itemsize=1)
    full, half = (paged_attention_cost(s, [1], [10_000]).bytes for s in (QWEN3_8B, eight))
    assert half == pytest.approx(full / 2, rel=1e-3)
    assert store_kv_cost(eight, 10).bytes == 10 * 8 * 256 * 3


def test_small_kernels():
    assert rowwise_cost(3, 8, 2, reads=2, writes=2) == Cost(192, 0)
    assert merge_splits_cost(QWEN3_8B, tokens=1, splits=4).bytes == 2 * 32 * 4 * 129 * 4
    assert linear_cost(2, 3, 5) == Cost(2 * (15 + 16), 60)
    assert linear_cost(1, 2, 2) + Cost(1, 1) == Cost(2 * (4 + 4) + 1, 9)


def test_experts_read_no_more_weights_than_tokens_reach():
    one = grouped_mlp_cost(1, 2, 8, hidden=16, inner=4)
    assert one.flops == 2 * 3 * 2 * 16 * 4
    assert one.bytes == 2 * (2 * 3 * 16 * 4 + 2 * (48 + 8) + 16)
    many = grouped_mlp_cost(1000, 2, 8, hidden=16, inner=4)
    assert many.bytes - 1000 * (one.bytes - 2 * 2 * 3 * 16 * 4) == 8 * 3 * 16 * 4 * 2


def test_routing_reads_logits_and_choices():
    assert routing_cost(3, 2, 8, itemsize=4) == Cost(3 * (8 * 4 + 2 * 24), 0)


def test_the_floor_is_the_slower_of_the_two():
    device = Roof("", bytes_per_second=10.0, flops_per_second=100.0)
    assert Cost(50, 100).floor_seconds(device) == 5.0
    assert Cost(50, 1000).floor_seconds(device) == 10.0
