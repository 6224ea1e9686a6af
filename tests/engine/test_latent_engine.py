"""Latent attention through the whole engine: transformers' tokens, and one latent a token cached.

The prompts are longer than the original length of the model's YaRN and than a step, so they are
read in chunks, and pages are few enough that sequences wait for each other.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import named
from tiny_checkpoints import make_checkpoint
from tiny_llama import save_tokenizer
from transformers import PreTrainedModel

from assembler import LLM, SamplingParams
from assembler.engine.kv_cache import bytes_per_page, cache_specs

NUM_LAYERS, LATENT, ROTATED, FLOAT32 = 3, 18, 6, 4  # of the tiny model
TOKEN_BYTES = NUM_LAYERS * (LATENT + ROTATED) * FLOAT32
PAGE_SIZE, NUM_PAGES, NEW_TOKENS = 4, 15, 14
PROMPTS = [[5, 9, 3], [7, 7, 30, 41] * 6, [11], list(range(20, 37))]
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
CROWDED = {
    "page_size": PAGE_SIZE,
    "kv_cache_memory_bytes": NUM_PAGES * PAGE_SIZE * TOKEN_BYTES,
    "max_num_batched_tokens": 10,
    "max_num_seqs": 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deepseek_v3")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    reference = make_checkpoint(named("deepseek_v3-groups-yarn"), folder)
    save_tokenizer(folder)
    return [_generate(reference, prompt) for prompt in PROMPTS]


def _generate(reference: PreTrainedModel, prompt: list[int]) -> list[int]:
    """What transformers generates, from its own cache."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    found = reference.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)
    return found[0, len(prompt) :].tolist()


def tokens(llm: LLM) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def test_the_engine_generates_what_transformers_does(folder: Path, expected: list[list[int]]):
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)
    llm = LLM(folder, **CROWDED)
    assert tokens(llm) == expected
    pool = llm.engine.scheduler.page_pool
    assert pool.num_free == pool.num_pages == NUM_PAGES


def test_two_ranks_generate_the_same(
    folder: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with LLM(folder, tensor_parallel_size=2, **CROWDED) as llm:
        assert tokens(llm) == expected
        # The latents are no heads that could be split: every rank caches all of them.
        assert llm.engine.scheduler.page_pool.num_pages == NUM_PAGES


def test_the_cache_holds_one_latent_a_token(folder: Path, expected: list[list[int]]):
    llm = LLM(folder, **CROWDED)
    specs = cache_specs(llm.model)
    assert bytes_per_page(specs, 1, torch.float32) == TOKEN_BYTES
    caches = llm.engine.model_runner.kv_caches
    assert [values for _, values in caches] == [None] * NUM_LAYERS
    shape = (NUM_PAGES, PAGE_SIZE, 1, LATENT + ROTATED)
    assert [tuple(latents.shape) for latents, _ in caches] == [shape] * NUM_LAYERS
