"""`LLM`: generate, chat and stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import (
    MAX_LENGTH,
    chatml,
    greedy,
    save_llama,
)
from transformers import AutoTokenizer, LlamaForCausalLM

from assembler import LLM, RequestOutput, SamplingParams
from assembler.errors import (
    OptionError,
    RequestError,
)
from assembler.llm_options import LLMOptions
from assembler.rank_model import rank_device

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
TEXTS = ["Hello there", "a", "The sea, the sea!\n" * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def reference(folder: Path) -> LlamaForCausalLM:
    return save_llama(folder)


@pytest.fixture(scope="module")
def shared_llm(reference: LlamaForCausalLM, folder: Path) -> LLM:
    return LLM(folder)


@pytest.fixture
def llm(shared_llm: LLM) -> Iterator[LLM]:
    """The LLM of all tests; each has to leave it without requests and with all its pages."""
    yield shared_llm
    assert shared_llm.is_finished()
    shared_llm.engine.check_integrity()  # no page is leaked


def expected(reference: LlamaForCausalLM, folder: Path, text: str) -> list[int]:
    return greedy(reference, AutoTokenizer.from_pretrained(folder).encode(text), 12)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


# generate ---------------------------------------------------------------------------------------


def test_one_text(llm: LLM, reference: LlamaForCausalLM, folder: Path):
    [output] = llm.generate("Hello there", GREEDY, use_tqdm=False)
    [completion] = output.outputs
    ids = llm.get_tokenizer().encode("Hello there")
    assert (output.prompt, output.prompt_token_ids) == ("Hello there", ids)
    assert completion.token_ids == expected(reference, folder, "Hello there")
    assert completion.text == llm.get_tokenizer().decode(completion.token_ids)
    assert output.finished and completion.finish_reason in ("length", "stop")
    assert output.metrics.num_generated_tokens == len(completion.token_ids)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_one_prompt_of_token_ids(kind: Any, llm: LLM):
    ids = llm.get_tokenizer().encode("Hello there")
    [output] = llm.generate(kind(ids), GREEDY, use_tqdm=False)
    assert output.prompt is None and output.prompt_token_ids == ids
    assert tokens([output]) == tokens(llm.generate("Hello there", GREEDY, use_tqdm=False))


def test_a_batch_gives_what_each_prompt_gives_alone(
    llm: LLM, reference: LlamaForCausalLM, folder: Path
):
    prompts = [TEXTS[0], llm.get_tokenizer().encode(TEXTS[1]), TEXTS[2]]
    together = llm.generate(prompts, GREEDY, use_tqdm=False)
    alone = [llm.generate([prompt], GREEDY, use_tqdm=False)[0] for prompt in prompts]
    assert tokens(together) == tokens(alone)
    assert tokens(together) == [expected(reference, folder, text) for text in TEXTS]


def test_a_crowded_engine_gives_the_same(reference: LlamaForCausalLM, folder: Path, llm: LLM):
    """Few pages, chunked prompts, few sequences at a time: nothing of it shows."""
    page_bytes = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers
    small = LLM(
        folder,
        page_size=4,
        kv_cache_memory_bytes=24 * page_bytes,
        max_num_seqs=2,
        max_num_batched_tokens=7,
    )
    assert small.engine.scheduler.page_pool.num_pages == 24
    assert tokens(small.generate(TEXTS * 2, GREEDY, use_tqdm=False)) == tokens(
        llm.generate(TEXTS * 2, GREEDY, use_tqdm=False)
    )


def test_sampling_params_of_each_prompt(llm: LLM):
    params = [
        SamplingParams(temperature=0.0, max_tokens=3),
        SamplingParams(temperature=0.0, max_tokens=5),
        SamplingParams(seed=7, max_tokens=9),
    ]
    outputs = llm.generate(["a"] * 3, params, use_tqdm=False)
    assert [len(ids) for ids in tokens(outputs)] == [3, 5, 9]
    assert tokens(outputs)[0] == tokens(outputs)[1][:3]
    again = llm.generate("a", params[2], use_tqdm=False)
    assert tokens(again) == tokens(outputs[2:])  # a seed does not depend on the neighbours
    until_length = SamplingParams(seed=1, ignore_eos=True)
    assert len(tokens(llm.generate("a", until_length, use_tqdm=False))[0]) == 16  # the default


def test_no_prompts_give_no_outputs(llm: LLM):
    assert llm.generate([], GREEDY) == []


def test_progress_is_on_stderr_alone(llm: LLM, capsys: pytest.CaptureFixture[str]):
    llm.generate(["a", "b"], GREEDY, use_tqdm=True)
    out, err = capsys.readouterr()
    assert out == "" and "2/2" in err
    assert re.search(r"prefill \d+ tok/s, decode \d+ tok/s", err)
    llm.generate("a", GREEDY, use_tqdm=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "the prompt is empty"),
        ([[]], "the prompt is empty"),
        (["a", "", "b"], "prompt 1: the prompt is empty"),
        ([1, 999, -2], r"token ids that the model does not know: -2, 999\. They must be 0 to 259"),
        (["a", [1.5]], r"prompt 1: a prompt is a text or a list of token ids"),
        (5, r"a prompt is a text or a list of token ids \(int\), not 5"),
        (None, "a prompt is a text or a list of token ids"),
        ("x" * MAX_LENGTH, r"has 256 tokens; the model's length \(max_model_len\) is 256 tokens"),
        (
            ["ok", "x" * 250],
            r"prompt 1: .* 250 tokens and max_tokens is 12; .* Set max_tokens to",
        ),
        ("half a pair \ud800", "surrogate"),
    ],
)
def test_prompts_that_cannot_be_served(prompts: Any, message: str, llm: LLM):
    """All or none: the good prompts of a refused batch leave nothing behind."""
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    assert llm.engine.is_finished()


def test_all_refusals_come_at_once(llm: LLM):
    with pytest.raises(RequestError) as error:
        llm.generate(["", "ok", "x" * 300], GREEDY, use_tqdm=False)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "prompt 0",
        "prompt 2",
    ]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([GREEDY], "2 prompts but 1 sampling_params"),
        ({"temperature": 0.0}, "sampling_params is SamplingParams or a list of them"),
        ([GREEDY, 0.7], "sampling_params is SamplingParams or a list of them"),
    ],
)
def test_sampling_params_that_are_none(params: Any, message: str, llm: LLM):
    with pytest.raises(OptionError, match=message):
        llm.generate(["a", "b"], params, use_tqdm=False)


def test_an_interrupted_generation_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    step, calls = llm.engine.step, []

    def interrupted() -> list[RequestOutput]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(TEXTS, GREEDY, use_tqdm=False)
    assert llm.engine.is_finished()


def test_a_batch_that_breaks_off_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    add = llm.engine.add_request

    def breaks(request_id: str, prompt: Any, *args: Any, **options: Any) -> None:
        if prompt == "b":
            raise RuntimeError("a bug in a tokenizer")
        add(request_id, prompt, *args, **options)

    monkeypatch.setattr(llm.engine, "add_request", breaks)
    with pytest.raises(RuntimeError):
        llm.generate(["a", "b", "c"], GREEDY, use_tqdm=False)
    assert llm.engine.is_finished()


def test_the_next_turn_of_a_chat_starts_behind_the_last_one(folder: Path, reference: Any):
    llm = LLM(folder)
    messages = [{"role": "user", "content": "What is the sea, and why is it so large?"}]
    [first] = llm.chat(messages, GREEDY, use_tqdm=False)
    messages += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "Why?"}]
    [second] = llm.chat(messages, GREEDY, use_tqdm=False)
    assert first.metrics.num_cached_tokens == 0
    assert second.metrics.num_cached_tokens == len(first.prompt_token_ids) // 16 * 16
    [alone] = LLM(folder, enable_prefix_caching=False).chat(messages, GREEDY, use_tqdm=False)
    assert tokens([second]) == tokens([alone])


# step by step -------------------------------------------------------------------------------------


def test_requests_step_by_step(llm: LLM):
    first, second = llm.add_request("a", GREEDY), llm.add_request("b", GREEDY)
    found: dict[str, RequestOutput] = {}
    while not llm.is_finished():
        found |= {output.request_id: output for output in llm.step()}
    expected = llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert tokens([found[first], found[second]]) == tokens(expected)
    assert llm.step() == [] and llm.abort(first) is None


def test_generate_keeps_what_step_has_to_report(llm: LLM):
    short = SamplingParams(temperature=0.0, max_tokens=2)
    request_id = llm.add_request("a", short)
    aborted = llm.add_request("a", short)
    assert llm.abort(aborted).outputs[0].finish_reason == "abort"
    llm.generate("b", GREEDY, use_tqdm=False)  # the other one ends meanwhile
    assert not llm.is_finished()
    [output] = llm.step()
    assert output.finished and output.request_id == request_id


def test_several_samples(llm: LLM):
    params = SamplingParams(n=3, seed=5, max_tokens=6)
    [output] = llm.generate("Hello there", params, use_tqdm=False)
    assert [done.index for done in output.outputs] == [0, 1, 2]
    [first] = llm.generate("Hello there", params.model_copy(update={"n": 1}), use_tqdm=False)
    assert tokens([first]) == tokens([output])
    last = list(llm.stream("Hello there", params))[-1]
    assert [d.token_ids for d in last.outputs] == [d.token_ids for d in output.outputs]


# chat and stream ----------------------------------------------------------------------------------


def test_chat(llm: LLM):
    question = [{"role": "user", "content": "Hi"}]
    with_system = [{"role": "system", "content": "Be brief"}, *question]
    tokenizer = llm.get_tokenizer()
    assert tokenizer.decode(llm.chat_prompt(with_system), False) == chatml("Hi", "Be brief")
    one = llm.chat(question, GREEDY, use_tqdm=False)
    assert tokens(one) == tokens(llm.generate(chatml("Hi"), GREEDY, use_tqdm=False))
    both = llm.chat([question, with_system], GREEDY, use_tqdm=False)
    assert tokens(both) == tokens(one) + tokens(llm.chat(with_system, GREEDY, use_tqdm=False))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("Hi", "messages must be a list"),
        ({"role": "user", "content": "Hi"}, "messages must be a list"),
        (["Hi"], r"messages\[0\] is a str"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([[{"role": "user", "content": "Hi"}], []], "messages is empty"),
    ],
)
def test_conversations_that_are_none(messages: Any, message: str, llm: LLM):
    with pytest.raises(RequestError, match=message):
        llm.chat(messages, GREEDY, use_tqdm=False)


def test_a_stream_grows_to_what_generate_gives(llm: LLM):
    outputs = list(llm.stream("Hello there", GREEDY))
    [whole] = llm.generate("Hello there", GREEDY, use_tqdm=False)
    assert tokens(outputs[-1:]) == tokens([whole])
    assert outputs[-1].outputs[0].text == whole.outputs[0].text
    counts = [len(ids) for ids in tokens(outputs)]
    assert counts == list(range(1, len(counts) + 1))
    texts = [output.outputs[0].text for output in outputs]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert [output.finished for output in outputs] == [False] * (len(counts) - 1) + [True]


def test_a_stream_closed_early_frees_its_pages(llm: LLM):
    pool = llm.engine.scheduler.page_pool
    stream = llm.stream("Hello there", GREEDY)
    next(stream)
    assert pool.num_free < pool.num_pages
    stream.close()
    assert pool.num_free == pool.num_pages and llm.engine.is_finished()
    for _ in llm.stream("Hello there", GREEDY):
        break  # the iterator is dropped without a close
    assert llm.engine.is_finished()
    assert list(llm.stream("a", GREEDY))  # and the engine goes on


def test_streams_are_read_in_turns(llm: LLM):
    """Each gets what it would get alone, however the steps are shared out."""
    alone = tokens(llm.generate(["a", "b"], GREEDY, use_tqdm=False))
    first, second = llm.stream("a", GREEDY), llm.stream("b", GREEDY)
    next(first)
    assert tokens(list(second)[-1:]) == alone[1:]
    last = list(first)[-1]
    assert last.finished and tokens([last]) == alone[:1]


def test_generate_while_a_stream_is_open(llm: LLM):
    long = SamplingParams(temperature=0.0, max_tokens=30)
    alone = tokens(llm.generate("a", long, use_tqdm=False))
    stream = llm.stream("a", long)
    next(stream)
    short = SamplingParams(temperature=0.0, max_tokens=3)
    [output] = llm.generate("b", short, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 3
    assert not llm.engine.is_finished()  # generate waited for its own request alone
    assert tokens(list(stream)[-1:]) == alone


# where it runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("found", "device"), [(None, "cpu"), ("meta", "meta")])
def test_what_accelerator_there_is_is_taken(
    found: str | None, device: str, monkeypatch: pytest.MonkeyPatch
):
    there = None if found is None else torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: there)
    assert rank_device(LLMOptions(), 0) == torch.device(device)
    assert rank_device(LLMOptions(device="cpu"), 0) == torch.device("cpu")
