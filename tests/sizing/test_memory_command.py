"""What a model is said to take, against the tensors that are really allocated."""

import json
from pathlib import Path

import pytest
import torch
from tiny_llama import save_llama

from assembler import LLM, memory_use
from assembler.blocks.parallel import TensorParallel
from assembler.engine.kv_cache import allocate_kv_caches, cache_specs
from assembler.engine.step_memory import step_memory
from assembler.errors import AssemblerError, OptionError
from assembler.loading import assemble, load_model, load_weights
from assembler.memory import main
from assembler.sizing.byte_sizes import format_gib, parse_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_llama(tmp_path, tie_word_embeddings=True)
    return tmp_path


def nbytes(model: torch.nn.Module) -> int:
    """Of distinct memory: tied weights count once."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_cache_are_those_allocated(folder: Path, dtype: str):
    use = memory_use(folder, gpu="1MB", dtype=dtype, max_num_batched_tokens=64, max_num_seqs=4)
    (size,) = use.sizes
    model = load_model(folder, dtype=getattr(torch, dtype))
    assert size.weights == size.lightest == nbytes(model)
    assert use.parameters == sum(p.numel() for p in model.parameters())
    pages = size.kv_tokens // 16
    caches = allocate_kv_caches(
        cache_specs(model), pages, 16, torch.device("cpu"), getattr(torch, dtype)
    )
    cache = sum(t.nbytes for pair in caches for t in pair)
    assert cache == size.kv_tokens * size.kv_per_token
    step = step_memory(model, 64, 64)  # prompts may be scored: a logit for every token
    assert size.step == step
    assert size.weights + step + cache <= 900_000 < size.weights + step + cache * (1 + 1 / pages)


def test_ranks_hold_what_they_load(folder: Path):
    """Of 4 query and 2 key/value heads over 3 ranks... two cannot; over 2 and 4 they can."""
    use = memory_use(folder, tp=[2, 4, 3], dtype="float32")
    for size in use.sizes[:2]:
        ranks = []
        for rank in range(size.tp_size):
            tp = TensorParallel(rank, size.tp_size)
            ranks.append(nbytes(load_weights(assemble(folder, tp=tp), torch.float32)))
        assert (max(ranks), min(ranks)) == (size.weights, size.lightest)
    assert "which 3 ranks" in use.sizes[2].refused and not use.sizes[2].fits and not use.fits


def test_the_engine_takes_as_many_tokens(folder: Path):
    (size,) = memory_use(folder, gpu="1MB", dtype="float32", max_num_batched_tokens=100).sizes
    llm = LLM(folder, dtype="float32", kv_cache_memory_bytes=size.kv_tokens * size.kv_per_token)
    assert llm.engine.scheduler.page_pool.num_pages * 16 == size.kv_tokens


def test_batch_and_context(folder: Path):
    config = folder / "config.json"  # nothing else is needed
    wide = {"max_num_seqs": 100, "max_num_batched_tokens": 200, "dtype": "float32"}
    (size,) = memory_use(config, gpu="1MB", context=40, **wide).sizes
    assert size.max_batch == size.kv_tokens // 48  # 40 tokens fill three pages
    assert size.longest_context == 256 < size.kv_tokens
    (size,) = memory_use(config, gpu="80GiB", context=40, **wide).sizes
    assert size.max_batch == 100
    fewer = memory_use(config, overrides=["conf.layers.count=1"], dtype="float32").sizes[0]
    assert fewer.kv_per_token * 3 == size.kv_per_token


def test_the_command(folder: Path, capsys):
    assert main([f"checkpoint={folder}", "tp=[1,2]", "gpu=1GB"]) == 0
    text = capsys.readouterr().out
    assert "llama, 3 layers" in text and "953.67 MiB" in text and "longest context" in text
    assert main([f"checkpoint={folder}", "gpu=20kB"]) == 1
    assert "tp=1 does not fit: weights and a step take" in capsys.readouterr().out
    assert main([f"checkpoint={folder}", "tp=[2,3]", "format=json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [row["fits"] for row in data["sizes"]] == [True, False] and data["device"]["nbytes"] > 0


def test_what_is_wrong_is_said_at_once(folder: Path):
    with pytest.raises(
        OptionError, match=r"(?s)tp=.*number of ranks.*gpu='80XB': a size is wanted"
    ):
        memory_use(folder, tp=[0], gpu="80XB")
    with pytest.raises(AssemblerError, match="no such folder or file"):
        memory_use(folder / "nowhere" / "config.json")


def test_sizes_as_people_write_them():
    assert parse_bytes("80GiB") == 80 << 30 and parse_bytes("24 gb") == 24 * 10**9
    assert parse_bytes("1.5MiB") == 3 << 19 and parse_bytes("4194304") == 4 << 20
    for text in ("", "0", "24", "GiB", "-1GB", "80 Gibs", "1e9"):
        with pytest.raises(ValueError):
            parse_bytes(text)
    assert [format_gib(n) for n in (0, 1023, 1536, 1 << 30)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "1.00 GiB",
    ]
