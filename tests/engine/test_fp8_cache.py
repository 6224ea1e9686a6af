"""A KV cache of 8 bits: a quarter of float32's memory, scores close to those of a full one."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import save_llama

from assembler import LLM, SamplingParams
from assembler.errors import OptionError

PROMPT = list(range(3, 60))
SCORED = SamplingParams(temperature=0.0, max_tokens=8, logprobs=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def cache_of(llm):
    return llm.engine.model_runner.kv_caches


def first_scores(llm):
    [output] = llm.generate([PROMPT], SCORED, use_tqdm=False)
    return {token: score.logprob for token, score in output.outputs[0].logprobs[0].items()}


@pytest.mark.parametrize("attention", ["torch", "triton"])
def test_scores_are_close_to_those_of_a_full_cache(folder, attention):
    full = first_scores(LLM(folder, attention=attention))
    eight = LLM(folder, attention=attention, kv_cache_dtype="fp8")
    assert {cache.dtype for pair in cache_of(eight) for cache in pair} == {torch.float8_e4m3fn}
    got = first_scores(eight)
    both = full.keys() & got.keys()
    differences = [abs(full[token] - got[token]) for token in both]
    assert len(both) >= 2 and 0 < max(differences) < 0.2


def test_four_times_the_pages_fit(folder):
    pages = [
        LLM(
            folder, kv_cache_memory_bytes=1 << 20, max_num_seqs=10_000, kv_cache_dtype=dtype
        ).engine.model_runner.num_pages
        for dtype in ("auto", "fp8")
    ]
    assert pages[1] // 4 == pages[0]


def test_other_names_are_refused(folder):
    with pytest.raises(OptionError, match=r"kv_cache_dtype='int8'.*'auto' or 'fp8'"):
        LLM(folder, kv_cache_dtype="int8")
