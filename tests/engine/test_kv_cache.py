import pytest
import torch
from engine_fakes import MemoryModel, run
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
from assembler.engine.sampling_params import SamplingParams
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


def num_pages(**options):
    """Pages of a cache for 3 sequences of 100 tokens, which take 7 pages each."""
    engine = build(model_length=100, max_num_seqs=3, page_size=16, **options)
    keys, _ = engine.model_runner.kv_caches[0]
    assert keys.shape[0] == engine.scheduler.page_pool.num_pages
    return keys.shape[0]


PAGE = 16 * 3 * 2 * 4  # bytes of 16 tokens: 3 numbers, keys and values, float32


def test_without_prefix_caching_the_cache_is_no_larger_than_the_sequences_can_use():
    assert num_pages(enable_prefix_caching=False) == 3 * 7
    assert num_pages(enable_prefix_caching=False, kv_cache_memory_bytes=500 * PAGE) == 3 * 7


def test_memory_that_is_allotted_holds_known_beginnings(monkeypatch):
    assert num_pages() == 2 * 3 * 7  # by default a small model takes little
    assert num_pages(kv_cache_memory_bytes=500 * PAGE) == 500
    monkeypatch.setattr("assembler.engine.kv_cache.host_memory", lambda: 1000 * PAGE)
    monkeypatch.setattr("assembler.engine.kv_cache.resident_bytes", lambda: 100 * PAGE)
    assert num_pages(gpu_memory_utilization=0.9) == 800
    assert num_pages(gpu_memory_utilization=0.9, enable_prefix_caching=False) == 3 * 7
    monkeypatch.setattr("assembler.engine.kv_cache.host_memory", lambda: 100 * PAGE)
    assert num_pages() == 25  # a quarter


def test_an_allotted_cache_finds_prompts_of_long_ago():
    def tokens_found(**options):
        engine = build(model_length=100, max_num_seqs=1, page_size=16, **options)
        for number, first in enumerate((1, 2, 3, 4, 5, 1)):
            params = SamplingParams(temperature=0, max_tokens=1)
            engine.add_request(str(number), [first] + [9] * 89, params)
            (output,) = run(engine).values()
        return output.metrics.num_cached_tokens

    assert tokens_found(kv_cache_memory_bytes=60 * PAGE) == 80
    assert tokens_found(kv_cache_memory_bytes=7 * PAGE) == 0


def test_the_cache_keeps_to_its_budget():
    engine = build(model_length=100, kv_cache_memory_bytes=5000, page_size=16)
    (caches,) = engine.model_runner.kv_caches
    assert sum(t.nbytes for t in caches) <= 5000
    assert engine.scheduler.page_pool.num_pages == 5000 // (16 * 3 * 2 * 4)


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
