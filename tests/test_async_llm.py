"""`AsyncLLM`: many tasks, one engine."""

from __future__ import annotations

import asyncio
import random
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from engine_gate import Gate, engine_of, finished
from tiny_llama import chatml, save_llama

from assembler import LLM, AsyncLLM, SamplingParams
from assembler.errors import OptionError, RequestError
from assembler.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
LONG = SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)
TEXTS = ["Hello there", "a", "The sea, the sea!\n" * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    """What `LLM` says to TEXTS."""
    return [output.outputs[0].text for output in LLM(folder).generate(TEXTS, GREEDY, False)]


def test_many_tasks_get_what_llm_gives(folder: Path, expected: list[str]):
    async def main():
        async with AsyncLLM(folder, max_num_seqs=5) as llm:
            outputs = await asyncio.gather(*(llm.generate(text, GREEDY) for text in TEXTS * 4))
            engine_of(llm).check_integrity()
        return [output.outputs[0].text for output in outputs]

    assert asyncio.run(main()) == expected * 4


def test_a_stream_grows_to_what_generate_gives(folder: Path, expected: list[str]):
    async def main():
        async with AsyncLLM(folder) as llm:
            texts = [o.outputs[0].text async for o in llm.stream(TEXTS[0], GREEDY)]
            assert all(after.startswith(before) for before, after in pairwise(texts))
            assert texts[-1] == expected[0]
            answer = await llm.chat([{"role": "user", "content": "Hi"}], GREEDY)
            assert answer.finished and answer.prompt_token_ids == llm.chat_prompt(
                [{"role": "user", "content": "Hi"}]
            )

    asyncio.run(main())


def test_a_cancelled_task_ends_its_request(folder: Path, expected: list[str]):
    async def main():
        async with AsyncLLM(folder) as llm:
            gate = Gate(engine_of(llm))
            task = asyncio.create_task(llm.generate("Hello", LONG))
            await gate.entered()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):  # whatever the time: no step ends
                await asyncio.wait_for(llm.generate("Hello", LONG), 0.001)
            gate.open()
            async for _ in llm.stream("Hello", LONG):
                break  # left early
            output = await llm.generate(TEXTS[0], GREEDY)
            assert output.outputs[0].text == expected[0]
            await finished(llm)
            engine_of(llm).check_integrity()

    asyncio.run(main())


def test_a_request_is_aborted_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async def main():
        async with AsyncLLM(folder) as llm:
            gate = Gate(engine_of(llm))
            running = asyncio.create_task(llm.generate("Hello", LONG, request_id="mine"))
            await gate.entered()
            with pytest.raises(RequestError, match="'mine' is taken by an unfinished request"):
                await llm.generate("Hello", LONG, request_id="mine")
            await llm.abort("mine")
            await llm.abort("nobody's")
            early = asyncio.create_task(llm.generate("Hello", LONG, request_id="early"))
            await asyncio.sleep(0)  # its prompt is being encoded, or just was
            await llm.abort("early")
            gate.open()
            for call, name in ((running, "mine"), (early, "early")):
                output = await call
                assert output.request_id == name and output.error is None
                assert output.outputs[0].finish_reason == "abort"
            streamed = [o async for o in llm.stream("Hello", GREEDY, request_id="mine")]
            assert {o.request_id for o in streamed} == {"mine"}
            assert streamed[-1].outputs[0].finish_reason in ("stop", "length")

    asyncio.run(main())


def test_texts_are_encoded_and_rendered_beside_the_loop_and_the_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    async def main():
        async with AsyncLLM(folder) as llm:
            threads = []
            for name in ("encode", "apply_chat_template"):
                call = getattr(Tokenizer, name)

                def noted(*args, call=call, **options):
                    threads.append(threading.current_thread())
                    return call(*args, **options)

                monkeypatch.setattr(Tokenizer, name, noted)
            output = await llm.generate("Hello", GREEDY)
            assert output.prompt == "Hello" and len(threads) == 1
            output = await llm.chat([{"role": "user", "content": "Hi"}], GREEDY)
            assert output.prompt == chatml("Hi") and len(threads) == 3
            busy = {threading.main_thread().name, "engine"}
            assert not busy & {thread.name for thread in threads}

    asyncio.run(main())


def test_options_of_a_chat(folder: Path):
    messages = [{"role": "user", "content": "Hi"}]
    template = "{{ messages[0].content }}{% if tools %}?{% endif %} {{ think }}"
    options = {"chat_template": template, "tools": [{}], "chat_template_kwargs": {"think": 1}}

    async def main():
        async with AsyncLLM(folder) as llm:
            output = await llm.chat(messages, GREEDY, request_id="x", **options)
            assert (output.prompt, output.request_id) == ("Hi? 1", "x")
            assert llm.chat_prompt(messages, **options) == output.prompt_token_ids
            with pytest.raises(OptionError, match="'enable_thinking': here it goes into"):
                await llm.chat(messages, GREEDY, enable_thinking=False)

    asyncio.run(main())


def test_tasks_that_come_and_go_on_a_small_cache(folder: Path):
    rng = random.Random(3)
    prompts = [[rng.randrange(250) for _ in range(rng.randint(1, 60))] for _ in range(100)]
    params = [SamplingParams(temperature=0.0, max_tokens=rng.randint(1, 30)) for _ in prompts]
    alone = LLM(folder).generate(prompts, params, use_tqdm=False)
    page_bytes = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers

    async def serve(llm: AsyncLLM, number: int) -> list[int]:
        if number % 3:
            return (await llm.generate(prompts[number], params[number])).outputs[0].token_ids
        most = rng.randint(1, params[number].max_tokens)
        async for output in llm.stream(prompts[number], params[number]):
            token_ids = output.outputs[0].token_ids
            if len(token_ids) >= most:
                break
        return token_ids

    async def main():
        cache = {"kv_cache_memory_bytes": 40 * page_bytes, "page_size": 4}
        async with AsyncLLM(folder, max_num_seqs=8, max_num_batched_tokens=30, **cache) as llm:
            found = await asyncio.gather(*(serve(llm, number) for number in range(len(prompts))))
            await finished(llm)
            engine_of(llm).check_integrity()
        assert llm.stats.num_preemptions > 0
        return found

    found = asyncio.run(main())
    for number, (output, token_ids) in enumerate(zip(alone, found, strict=True)):
        if number % 3:
            assert token_ids == output.outputs[0].token_ids
        else:
            assert token_ids and token_ids == output.outputs[0].token_ids[: len(token_ids)]
