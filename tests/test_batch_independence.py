"""Text does not depend on who else is served, nor on how the engine goes about it.

Rounding does, where torch runs the step: a product sums in another order for one row than for many,
so logits differ in the last digits from batch to batch. A greedy token can change only where two
logits are that close, after all that parameters do to them; the requests here have none such, which
is checked. (What is drawn could change where a random number falls between two sums that close,
which in a few hundred draws it does not.) In compiled steps the bits are the same, in bfloat16 too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import save_llama

from assembler import LLM, RequestOutput, SamplingParams
from assembler.engine import sampler
from assembler.kernels.cpu_library import cpu_library, has_matrix_unit

NUM_REQUESTS = 64
PAGE_BYTES = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers
CLEAR = 1e-4  # a logit that far ahead stays ahead; differences are below 1e-5
LETTERS = [chr(code) for code in range(ord("!"), 127)]

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
    "torch": {"enforce_eager": True},
    "torch, chunks, preemption": {
        "enforce_eager": True,
        "max_num_batched_tokens": 17,
        "max_num_seqs": 12,
        "kv_cache_memory_bytes": 50 * PAGE_BYTES,
        "page_size": 4,
    },
}
PREEMPTING = {way for way in WAYS if "preemption" in way}
SLOW = {"torch, chunks, preemption"}
# Torch's products of bfloat16 are no longer the same bits.
compiled_bfloat16 = pytest.mark.skipif(
    cpu_library() is None or has_matrix_unit(), reason="torch runs steps of bfloat16 here"
)

Answer = list[tuple[list[int], str, int | str | None]]  # of each sample: tokens, text, stop reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def mixed_requests() -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts of many lengths, half of which begin like another one; all sorts of params."""
    rng = random.Random(11)
    beginnings = [[rng.randrange(256) for _ in range(40)] for _ in range(3)]
    prompts, params = [], []
    for number in range(NUM_REQUESTS):
        prompt = [rng.randrange(256) for _ in range(rng.choice([1, 3, 16, 17, 60, 110]))]
        if number % 2:
            prompt = rng.choice(beginnings)[: rng.randint(1, 40)] + prompt[:30]
        prompts.append(prompt)
        some: list[dict[str, Any]] = [
            {},
            {"stop_token_ids": [rng.randrange(256) for _ in range(20)]},
            {"repetition_penalty": 1.3},
            {"prompt_logprobs": 1},
            {"logit_bias": {7: 2.0}},
            {"stop": rng.sample(LETTERS, 30)},
            {"bad_words": rng.sample(LETTERS, 30), "presence_penalty": 0.5},
            {"min_tokens": 8, "stop_token_ids": rng.sample(range(256), 120)},
            {"n": 2, "temperature": 0.9, "seed": number},
            {"allowed_token_ids": rng.sample(range(256), 100), "frequency_penalty": 0.3},
            {"temperature": 0.8, "top_p": 0.9, "seed": 1, "stop": rng.sample(LETTERS, 20)},
        ]
        settings = {
            "temperature": 0.0,
            "max_tokens": rng.randint(1, 16),
            **some[number % len(some)],
        }
        if "min_tokens" in settings:
            settings["max_tokens"] = 16
        params.append(SamplingParams(**settings))
    return prompts, params


def answer(output: RequestOutput) -> Answer:
    return [(done.token_ids, done.text, done.stop_reason) for done in output.outputs]


def answers_alone(folder: Path, **options: Any) -> list[Answer]:
    """What each request gets when the engine serves nobody else."""
    llm = LLM(folder, enable_prefix_caching=False, **options)
    requests = zip(*mixed_requests(), strict=True)
    return [answer(llm.generate([p], [own], use_tqdm=False)[0]) for p, own in requests]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Answer]:
    """In float32. No greedy token may be a near tie, after penalties, biases and bans."""
    gaps: list[float] = []
    real = sampler.edited_logits

    def watched(logits: torch.Tensor, sequences: Sequence[Any]) -> torch.Tensor:
        edited = real(logits, sequences)
        for row, sequence in zip(edited, sequences, strict=True):
            if sequence.params.is_greedy:
                first, second = row.topk(2).values.tolist()
                gaps.append(first - second)
        return edited

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "edited_logits", watched)
        found = answers_alone(folder)
    prompts, params = mixed_requests()
    plain = [p.is_greedy and p.repetition_penalty == 1.0 and p.logit_bias is None for p in params]
    llm = LLM(folder, enable_prefix_caching=False)
    for prompt, own, is_plain in zip(prompts, params, plain, strict=True):
        if is_plain:  # those that nothing edits are not seen above
            asking = own.model_copy(update={"logprobs": 2})
            (output,) = llm.generate([prompt], [asking], use_tqdm=False)
            for token in output.outputs[0].logprobs:
                first, second = sorted((t.logprob for t in token.values()), reverse=True)[:2]
                gaps.append(first - second)
    assert len(gaps) > 300 and min(gaps) > CLEAR, "choose other requests"
    return found


def test_the_requests_are_of_all_kinds(alone: list[Answer]):
    reasons = [reason for samples in alone for *_, reason in samples]
    assert sum(isinstance(reason, str) for reason in reasons) >= 5  # stop strings
    assert sum(isinstance(reason, int) for reason in reasons) >= 5  # stop tokens
    assert sum(len(samples) == 2 and samples[0] != samples[1] for samples in alone) >= 4
    for samples, params in zip(alone, mixed_requests()[1], strict=True):
        for token_ids, text, _ in samples:
            assert len(token_ids) >= params.min_tokens
            assert not any(word in text for word in (*params.stop, *params.bad_words))
            assert {*token_ids} <= {*(params.allowed_token_ids or token_ids)}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow) if way in SLOW else way for way in WAYS]
)
def test_text_is_that_of_each_request_alone(way: str, folder: Path, alone: list[Answer]):
    llm = LLM(folder, **WAYS[way])
    prompts, params = mixed_requests()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [*map(answer, outputs)] == alone
    llm.engine.check_integrity()
    assert (llm.engine.model_runner.compiled_step is None) == (
        "torch" in way or cpu_library() is None
    )
    assert (llm.engine.stats.num_preemptions > 0) == (way in PREEMPTING)
    # Samples of one request share its prompt in any case.
    one = [
        o.metrics.num_cached_tokens for o, own in zip(outputs, params, strict=True) if own.n == 1
    ]
    assert (sum(one) > 0) == ("no prefix" not in way)


@pytest.mark.slow
@compiled_bfloat16
def test_in_bfloat16_compiled_steps_give_the_same_text_too(folder: Path):
    alone = answers_alone(folder, dtype="bfloat16")
    way = WAYS["chunks, preemption"] | {
        "kv_cache_memory_bytes": 25 * PAGE_BYTES
    }  # of half the size
    llm = LLM(folder, dtype="bfloat16", **way)
    assert llm.engine.model_runner.compiled_step is not None
    outputs = llm.generate(*mixed_requests(), use_tqdm=False)
    assert [*map(answer, outputs)] == alone
    assert llm.engine.stats.num_preemptions > 0


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
