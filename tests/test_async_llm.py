"""`AsyncLLM`: many tasks, one engine."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_llama import save_llama

from assembler import LLM, SamplingParams
from assembler.async_llm import AsyncLLM, EngineDeadError
from assembler.errors import OptionError, RequestError, TokenizerError

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


def engine_of(llm: AsyncLLM):
    return llm._llm.engine


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
            task = asyncio.create_task(llm.generate("Hello", LONG))
            async for _ in llm.stream("Hello", LONG):
                break  # left early
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(llm.generate("Hello", LONG), 0.001)
            output = await llm.generate(TEXTS[0], GREEDY)
            assert output.outputs[0].text == expected[0]
            while not engine_of(llm).is_finished():
                await asyncio.sleep(0.001)
        engine_of(llm).check_integrity()

    asyncio.run(main())


def test_tasks_that_come_and_go_on_a_small_cache(folder: Path):
    rng = random.Random(3)
    prompts = [[rng.randrange(250) for _ in range(rng.randint(1, 60))] for _ in range(100)]
    params = [SamplingParams(temperature=0.0, max_tokens=rng.randint(1, 30)) for _ in prompts]
    alone = LLM(folder).generate(prompts, params, use_tqdm=False)
    page_bytes = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers

    async def serve(llm: AsyncLLM, number: int) -> list[int] | None:
        await asyncio.sleep(rng.random() * 0.01)
        limit = 0.03 if number % 3 == 0 else None
        try:
            call = llm.generate(prompts[number], params[number])
            return (await asyncio.wait_for(call, limit)).outputs[0].token_ids
        except asyncio.TimeoutError:
            return None

    async def main():
        cache = {"kv_cache_memory_bytes": 40 * page_bytes, "page_size": 4}
        async with AsyncLLM(folder, max_num_seqs=8, max_num_batched_tokens=30, **cache) as llm:
            found = await asyncio.gather(*(serve(llm, number) for number in range(len(prompts))))
            while not engine_of(llm).is_finished():
                await asyncio.sleep(0.001)
            assert llm.stats.num_preemptions > 0
        engine_of(llm).check_integrity()
        return found

    found = asyncio.run(main())
    for number, (output, token_ids) in enumerate(zip(alone, found, strict=True)):
        if number % 3:
            assert token_ids == output.outputs[0].token_ids
        else:
            assert token_ids in (None, output.outputs[0].token_ids)


def test_what_cannot_be_served_fails_alone(folder: Path, expected: list[str]):
    async def main():
        async with AsyncLLM(folder) as llm:
            *refused, good = await asyncio.gather(
                llm.generate("", GREEDY),
                llm.generate([999], GREEDY),
                llm.generate(["a", "b"], GREEDY),
                llm.generate("x" * 300, GREEDY),
                llm.generate(TEXTS[0], GREEDY),
                return_exceptions=True,
            )
            assert [type(error) for error in refused] == [RequestError] * 4
            assert good.outputs[0].text == expected[0]
            with pytest.raises(OptionError, match="sampling_params is"):
                await llm.generate("a", {"temperature": 0.0})
            with pytest.raises(OptionError, match="unknown option 'max_token'"):
                await llm.generate("a", SamplingParams(max_token=3))

    asyncio.run(main())


def test_engine_death_reaches_everybody(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async def main():
        llm = AsyncLLM(folder)
        step, calls = engine_of(llm).step, []

        def fails():
            calls.append(1)
            if len(calls) > 3:
                raise RuntimeError("the device is gone")
            return step()

        monkeypatch.setattr(engine_of(llm), "step", fails)
        ends = await asyncio.gather(
            *(llm.generate(text, LONG) for text in TEXTS), return_exceptions=True
        )
        assert all(isinstance(end, EngineDeadError) for end in ends)
        assert all("the device is gone" in str(end.__cause__) for end in ends)
        assert not llm.is_alive
        with pytest.raises(EngineDeadError, match="the device is gone"):
            await llm.generate("a", GREEDY)
        await llm.close()

    asyncio.run(main())


def test_after_close_nothing_is_served(folder: Path):
    async def main():
        async with AsyncLLM(folder) as llm:
            open_call = asyncio.create_task(llm.generate("Hello", LONG))
            await asyncio.sleep(0.01)
        with pytest.raises(EngineDeadError, match="closed"):
            await open_call
        with pytest.raises(EngineDeadError, match="closed"):
            await llm.generate("a", GREEDY)
        await llm.close()

    asyncio.run(main())


def test_options_and_errors_are_those_of_llm(tmp_path: Path):
    with pytest.raises(
        OptionError, match=r"unknown option 'page_sise'\. Did you mean 'page_size'\?"
    ):
        AsyncLLM(tmp_path, page_sise=3)
    save_llama(tmp_path, tokenizer=False)
    llm = AsyncLLM(tmp_path, load="dummy")
    with pytest.raises(TokenizerError, match="without tokenizer"):
        llm.chat_prompt([{"role": "user", "content": "Hi"}])
