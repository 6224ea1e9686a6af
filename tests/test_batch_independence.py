"""Greedy text does not depend on who else is served, nor on how the engine goes about it.

Rounding does: a matrix product sums in another order for one row than for many, so logits differ in
the last digits from batch to batch. A greedy token can change only where two logits are that close;
the requests here have none such, which is checked.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_llama import save_llama

from assembler import LLM, SamplingParams

NUM_REQUESTS = 64
PAGE_BYTES = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers
CLEAR = 1e-4  # a logit that far ahead stays ahead; differences are below 1e-5

WAYS = {
    "everything at once": {},
    "no prefix caching": {"enable_prefix_caching": False},
    "chunks": {"max_num_batched_tokens": 24, "max_num_seqs": 24},
    "whole prompts": {"enable_chunked_prefill": False, "max_num_seqs": 16},
    "preemption": {"kv_cache_memory_bytes": 60 * PAGE_BYTES, "page_size": 4},
    "chunks, preemption": {
        "max_num_batched_tokens": 17,
        "max_num_seqs": 12,
        "kv_cache_memory_bytes": 50 * PAGE_BYTES,
        "page_size": 4,
    },
    "chunks, preemption, no prefix caching": {
        "max_num_batched_tokens": 17,
        "max_num_seqs": 12,
        "kv_cache_memory_bytes": 50 * PAGE_BYTES,
        "page_size": 4,
        "enable_prefix_caching": False,
    },
    "whole prompts, preemption": {
        "enable_chunked_prefill": False,
        "kv_cache_memory_bytes": 50 * PAGE_BYTES,
        "page_size": 4,
        "max_num_seqs": 20,
    },
}
PREEMPTING = {way for way in WAYS if "preemption" in way}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def mixed_requests() -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of many lengths, half of which begin like another one; all sorts of greedy params."""
    rng = random.Random(11)
    beginnings = [[rng.randrange(256) for _ in range(40)] for _ in range(3)]
    prompts, params = [], []
    for number in range(NUM_REQUESTS):
        prompt = [rng.randrange(256) for _ in range(rng.choice([1, 3, 16, 17, 60, 110]))]
        if number % 2:
            prompt = rng.choice(beginnings)[: rng.randint(1, 40)] + prompt[:30]
        prompts.append(prompt)
        more = [
            {},
            {"stop_token_ids": [rng.randrange(256) for _ in range(20)]},
            {"repetition_penalty": 1.3},
            {"prompt_logprobs": 1},
            {"logit_bias": {7: 2.0}},
        ][number % 5]
        params.append(SamplingParams(temperature=0.0, max_tokens=rng.randint(1, 16), **more))
    return prompts, params


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[tuple[list[int], str]]:
    """(token ids, text) of each request when the engine serves nobody else."""
    llm = LLM(folder, enable_prefix_caching=False)
    found = []
    for prompt, params in zip(*mixed_requests(), strict=True):
        # Penalties and biases come after the log-probabilities: their own test is the sampler's.
        plain = params.model_copy(update={"logprobs": 2})
        (output,) = llm.generate([prompt], [plain], use_tqdm=False)
        (done,) = output.outputs
        if params.repetition_penalty == 1.0 and params.logit_bias is None:
            for token in done.logprobs:
                first, second = sorted((t.logprob for t in token.values()), reverse=True)[:2]
                assert first - second > CLEAR, "choose other requests"
        found.append((done.token_ids, done.text))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_greedy_text_is_that_of_each_request_alone(
    way: str, folder: Path, alone: list[tuple[list[int], str]]
):
    llm = LLM(folder, **WAYS[way])
    outputs = llm.generate(*mixed_requests(), use_tqdm=False)
    assert [(o.outputs[0].token_ids, o.outputs[0].text) for o in outputs] == alone
    llm.engine.check_integrity()
    assert (llm.engine.stats.num_preemptions > 0) == (way in PREEMPTING)
    assert (llm.engine.stats.num_cached_tokens > 0) == ("no prefix" not in way)


def test_a_beginning_is_not_shared_across_a_border_of_the_rotation(tmp_path: Path):
    """Under longrope the keys of a long prompt are turned otherwise than those of a short one."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0, 5.0, 7.0, 9.0],
        "factor": 8.0,
    }
    save_llama(tmp_path, architectures=["LlamaForCausalLM"], rope_parameters=rope)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    beginning = [n * 7 % 256 for n in range(60)]
    prompts = [beginning[:length] for length in (30, 60, 20, 32, 33, 55, 60, 18)]
    llm = LLM(tmp_path, page_size=4)
    assert llm.engine.admission.length_border == 32
    together = [llm.generate([p], params, use_tqdm=False)[0] for p in prompts]
    plain = LLM(tmp_path, enable_prefix_caching=False)
    for output, prompt in zip(together, prompts, strict=True):
        (expected,) = plain.generate([prompt], params, use_tqdm=False)
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
    cached = [output.metrics.num_cached_tokens for output in together]
    assert cached == [0, 0, 16, 28, 0, 0, 56, 16]
