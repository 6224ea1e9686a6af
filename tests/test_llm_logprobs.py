"""`logprobs` and `prompt_logprobs` of `LLM` against the log-softmax of transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import save_llama
from transformers import LlamaForCausalLM

from assembler import LLM, SamplingParams
from assembler.engine.outputs import Logprob, RequestOutput
from assembler.errors import OptionError, RequestError

VOCAB = 260
PROMPTS = ["The sea, the sea!\n" * 4, "The sky, the sky.\n" * 4, "Hello there", "a"]
PAGE_BYTES = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks and few pages": {
        "page_size": 4,
        "kv_cache_memory_bytes": 34 * PAGE_BYTES,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 40,
    },
    "no prefix caching": {"enable_prefix_caching": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return save_llama(folder)


@pytest.fixture(scope="module", params=WAYS)
def llm(request: pytest.FixtureRequest, reference: LlamaForCausalLM, folder: Path) -> LLM:
    return LLM(folder, max_logprobs=-1, **WAYS[request.param])


def expected(reference: LlamaForCausalLM, token_ids: list[int]) -> torch.Tensor:
    """[tokens, VOCAB]: row i is what may follow the first i + 1 tokens."""
    with torch.inference_mode():
        return reference(torch.tensor([token_ids])).logits[0].log_softmax(-1)


def check(entries: dict[int, Logprob], token_id: int, judged: torch.Tensor, count: int) -> None:
    """The entries of one token; `judged` [VOCAB] is what transformers says."""
    assert next(iter(entries)) == token_id
    ranking = judged.argsort(descending=True).tolist()
    assert set(entries) == {token_id, *ranking[:count]}
    for found_id, entry in entries.items():
        assert abs(entry.logprob - judged[found_id]) < 3e-5
        assert entry.rank == ranking.index(found_id) + 1


def check_output(output: RequestOutput, reference: LlamaForCausalLM, count: int) -> None:
    prompt = output.prompt_token_ids
    for done in output.outputs:
        judged = expected(reference, prompt + done.token_ids)
        assert len(done.logprobs) == len(done.token_ids)
        rows = judged[len(prompt) - 1 : -1]
        for entries, token_id, row in zip(done.logprobs, done.token_ids, rows, strict=True):
            check(entries, token_id, row, count)
        own = [entries[i].logprob for entries, i in zip(done.logprobs, done.token_ids, strict=True)]
        assert done.cumulative_logprob == pytest.approx(sum(own))
    first, *others = output.prompt_logprobs
    assert first is None and len(others) == len(prompt) - 1
    for entries, token_id, row in zip(others, prompt[1:], judged[: len(prompt) - 1], strict=True):
        check(entries, token_id, row, count)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"seed": 1, "top_k": 30, "temperature": 3.0, "repetition_penalty": 1.4},
        {"seed": 2, "temperature": 2.0, "n": 3, "logit_bias": {70: 3.0}},
    ],
    ids=["greedy", "drawn", "samples"],
)
def test_they_are_those_of_transformers(
    settings: dict[str, Any], llm: LLM, reference: LlamaForCausalLM
):
    params = SamplingParams(
        max_tokens=10, ignore_eos=True, logprobs=4, prompt_logprobs=4, **settings
    )
    for _ in range(2):  # the second time, the pages of the prompt are cached
        for output in llm.generate(PROMPTS, params, use_tqdm=False):
            check_output(output, reference, 4)


def test_the_way_through_few_pages_preempts(reference: LlamaForCausalLM, folder: Path):
    """What the ways above rely on."""
    llm = LLM(folder, **WAYS["chunks and few pages"])
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, prompt_logprobs=0)
    llm.generate(PROMPTS, params, use_tqdm=False)
    assert llm.engine.stats.num_preemptions > 0


def test_a_request_that_asks_beside_one_that_does_not(llm: LLM, reference: LlamaForCausalLM):
    plain = SamplingParams(temperature=0.0, max_tokens=6)
    asking = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0, prompt_logprobs=1)
    [silent, told] = llm.generate(["Hello", "Hello"], [plain, asking], use_tqdm=False)
    assert silent.outputs[0].token_ids == told.outputs[0].token_ids
    assert silent.outputs[0].logprobs is None and silent.outputs[0].cumulative_logprob is None
    assert silent.prompt_logprobs is None
    assert [len(entries) for entries in told.outputs[0].logprobs] == [1] * 6


def test_tokens_have_their_text(llm: LLM):
    params = SamplingParams(temperature=0.0, max_tokens=3, logprobs=2, prompt_logprobs=0)
    [output] = llm.generate("Hello", params, use_tqdm=False)
    texts = [next(iter(entries.values())).decoded_token for entries in output.prompt_logprobs[1:]]
    tokenizer = llm.get_tokenizer()
    assert texts == [tokenizer.decode([i]) for i in output.prompt_token_ids[1:]]
    for entries in output.outputs[0].logprobs:
        assert all(e.decoded_token == tokenizer.decode([i], False) for i, e in entries.items())


def test_the_whole_vocabulary(llm: LLM):
    params = SamplingParams(max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    [output] = llm.generate("Hi", params, use_tqdm=False)
    [entries] = output.outputs[0].logprobs
    assert set(entries) == set(range(VOCAB)) == set(output.prompt_logprobs[1])
    assert sum(torch.tensor([e.logprob for e in entries.values()]).exp()) == pytest.approx(1.0)


def test_an_engine_says_how_many_it_reports(reference: LlamaForCausalLM, folder: Path):
    llm = LLM(folder)
    [output] = llm.generate("Hi", SamplingParams(max_tokens=1, logprobs=20), use_tqdm=False)
    assert len(output.outputs[0].logprobs[0]) in (20, 21)
    with pytest.raises(RequestError) as error:
        llm.generate("Hi", SamplingParams(logprobs=21, prompt_logprobs=-1), use_tqdm=False)
    assert str(error.value).splitlines() == [
        "logprobs is 21: the engine reports 20 at most. Make it with max_logprobs=21 to allow more",
        "  prompt_logprobs is -1, all tokens: the engine reports 20 at most. Make it with "
        "max_logprobs=-1 to allow more",
    ]
    asks = SamplingParams(max_tokens=1, logprobs=3)
    assert LLM(folder, max_logprobs=3).generate("Hi", asks, use_tqdm=False)
    none = LLM(folder, max_logprobs=0)
    with pytest.raises(RequestError, match="logprobs is 3: the engine reports 0 at most"):
        none.generate("Hi", asks, use_tqdm=False)
    with pytest.raises(OptionError, match="max_logprobs=-2"):
        LLM(folder, max_logprobs=-2)
    with pytest.raises(RequestError, match="logprobs is 261: the model has 260 tokens"):
        LLM(folder, max_logprobs=-1).generate("Hi", SamplingParams(logprobs=261), use_tqdm=False)


def test_a_stream_reports_as_many_as_it_has_tokens(llm: LLM):
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=1)
    outputs = list(llm.stream("Hello", params))
    assert [len(o.outputs[0].logprobs) for o in outputs] == [1, 2, 3, 4]
    assert [o.outputs[0].logprobs for o in outputs[:3]] == [
        outputs[3].outputs[0].logprobs[:n] for n in (1, 2, 3)
    ]
