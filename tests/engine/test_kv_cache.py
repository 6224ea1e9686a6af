import pytest
import torch
from engine_fakes import MemoryModel
from torch import nn

from assembler.blocks.context import CacheSpec
from assembler.engine.build import build_engine
from assembler.engine.kv_cache import (
    allocate_kv_caches,
    bytes_per_page,
    cache_budget,
    cache_specs,
    device_memory,
    length_border,
    pages_in_budget,
)
from assembler.engine.options import EngineOptions
from assembler.errors import OptionError

SPECS = [CacheSpec(num_kv_heads=2, head_dim=8), CacheSpec(num_kv_heads=1, head_dim=16)]


class Attention(nn.Module):
    def __init__(self, index: int, spec: CacheSpec) -> None:
        super().__init__()
        self.cache_index = index
        self.spec = spec

    def cache_spec(self) -> CacheSpec:
        return self.spec


def test_specs_come_in_cache_order_whatever_the_module_order():
    model = nn.Sequential(Attention(1, SPECS[1]), nn.Linear(2, 2), Attention(0, SPECS[0]))
    assert cache_specs(model) == SPECS


def test_a_page_holds_keys_and_values_of_all_blocks():
    caches = allocate_kv_caches(SPECS, 3, 4, torch.device("cpu"), torch.bfloat16)
    assert [tuple(keys.shape) for keys, _ in caches] == [(3, 4, 2, 8), (3, 4, 1, 16)]
    assert all(t.dtype == torch.bfloat16 and t.is_contiguous() for pair in caches for t in pair)
    total = sum(t.nbytes for pair in caches for t in pair)
    assert total == 3 * bytes_per_page(SPECS, 4, torch.bfloat16)


def test_values_may_have_their_own_width_or_lie_in_the_keys():
    specs = [CacheSpec(2, 8, value_dim=6), CacheSpec(1, 576, latent=True)]
    (keys, values), (latent, nothing) = allocate_kv_caches(
        specs, 3, 4, torch.device("cpu"), torch.float16
    )
    assert keys.shape == (3, 4, 2, 8) and values.shape == (3, 4, 2, 6)
    assert latent.shape == (3, 4, 1, 576) and nothing is None
    total = keys.nbytes + values.nbytes + latent.nbytes
    assert total == 3 * bytes_per_page(specs, 4, torch.float16)


def test_pages_in_budget_rounds_down():
    page = bytes_per_page(SPECS, 4, torch.float32)
    assert pages_in_budget(3 * page, SPECS, 4, torch.float32) == 3
    assert pages_in_budget(3 * page - 1, SPECS, 4, torch.float32) == 2
    assert pages_in_budget(page, SPECS, 4, torch.float32) == 1


def test_too_little_memory_for_one_page_says_how_much_is_needed():
    page = bytes_per_page(SPECS, 16, torch.float32)
    assert page == 4096
    with pytest.raises(OptionError) as error:
        pages_in_budget(page - 1, SPECS, 16, torch.float32)
    message = str(error.value)
    assert "too little for one page" in message
    assert "4 KiB over 2 attention blocks in float32" in message
    assert "kv_cache_memory_bytes to 4096 or more" in message


def test_a_cache_beyond_the_memory_is_an_option_error():
    with pytest.raises(OptionError, match="Lower kv_cache_memory_bytes"):
        allocate_kv_caches(SPECS, 1 << 50, 16, torch.device("cpu"), torch.float32)


def test_default_budget_is_a_part_of_the_memory():
    assert 64 << 20 < cache_budget(torch.device("cpu"), None) < 1 << 45


def build(model_length=None, **options):
    return build_engine(
        MemoryModel(),
        None,
        None,
        EngineOptions(**options),
        vocab_size=64,
        model_length=model_length,
    )


def test_engine_takes_its_length_from_the_options_or_the_model():
    assert build(model_length=100).max_model_len == 100
    assert build(model_length=100, max_model_len=60).max_model_len == 60
    with pytest.raises(OptionError, match="max_model_len=101 is more than the 100 tokens"):
        build(model_length=100, max_model_len=101)


def test_the_cache_is_no_larger_than_the_sequences_can_use():
    engine = build(model_length=100, max_num_seqs=3, page_size=16)
    assert engine.scheduler.page_pool.num_pages == 3 * 7
    keys, _ = engine.model_runner.kv_caches[0]
    assert keys.shape[0] == 3 * 7


def test_the_cache_keeps_to_its_budget():
    engine = build(model_length=100, kv_cache_memory_bytes=5000, page_size=16)
    (caches,) = engine.model_runner.kv_caches
    assert sum(t.nbytes for t in caches) <= 5000
    assert engine.scheduler.page_pool.num_pages == 5000 // (16 * 3 * 2 * 4)


def test_fewer_tokens_than_sequences_in_a_step_are_refused():
    with pytest.raises(OptionError, match="max_num_batched_tokens=8 must be at least max_num_seqs"):
        build(model_length=100, max_num_batched_tokens=8, max_num_seqs=9)


def test_a_step_holds_a_whole_sequence_where_prompts_are_not_cut():
    def tokens_of_a_step(**options):
        return build(model_length=5000, **options).scheduler.max_num_batched_tokens

    assert tokens_of_a_step() == 2048
    assert tokens_of_a_step(max_num_seqs=3000) == 3000
    assert tokens_of_a_step(enable_chunked_prefill=False) == 5000
    assert tokens_of_a_step(enable_chunked_prefill=False, max_model_len=100) == 2048
    assert tokens_of_a_step(max_num_batched_tokens=300) == 300
    with pytest.raises(OptionError, match="max_num_batched_tokens=300 is less than max_model_len"):
        tokens_of_a_step(enable_chunked_prefill=False, max_num_batched_tokens=300)


def test_prefix_caching_is_an_option():
    assert build().admission.prefix_caching
    assert not build(enable_prefix_caching=False).admission.prefix_caching


def test_a_share_of_the_memory_counts_what_is_in_use():
    cpu = torch.device("cpu")
    half, whole = (cache_budget(cpu, share) for share in (0.5, 1.0))
    free, total = device_memory(cpu)
    assert free == total and whole < total
    assert whole - half == pytest.approx(total / 2, rel=0.01)
    assert cache_budget(cpu, 1.0, num_sharing=2) < whole / 2
    with pytest.raises(OptionError, match=r"utilization=1e-06 .* is left for the KV cache"):
        cache_budget(cpu, 1e-6)
    with pytest.raises(OptionError, match="give one of them"):
        EngineOptions(gpu_memory_utilization=0.5, kv_cache_memory_bytes=1 << 20)
    with pytest.raises(OptionError, match=r"gpu_memory_utilization=1\.5: "):
        EngineOptions(gpu_memory_utilization=1.5)


def test_the_border_of_a_model_is_its_smallest():
    model = nn.Sequential(MemoryModel(by_length=False), nn.Linear(2, 2))
    assert length_border(model) is None
    model[1].length_border = 50
    assert length_border(model) == 50
    assert length_border(nn.Sequential(model, MemoryModel())) == 0
