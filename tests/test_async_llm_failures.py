"""`AsyncLLM`: what cannot be served, steps that fail, and the end."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from engine_gate import Gate, engine_of
from tiny_llama import save_llama

from assembler import LLM, AsyncLLM, SamplingParams
from assembler.async_llm import EngineDeadError
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


def fail(llm: AsyncLLM, steps: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the steps of these numbers fail."""
    runner, numbers = engine_of(llm).model_runner, itertools.count(1)
    execute = runner.execute

    def failing(*args):
        if next(numbers) in steps:
            raise RuntimeError("the device is gone")
        return execute(*args)

    monkeypatch.setattr(runner, "execute", failing)


def test_a_failed_step_ends_its_requests_alone(
    folder: Path, expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    async def main():
        async with AsyncLLM(folder) as llm:
            fail(llm, range(3, 4), monkeypatch)
            output = await llm.generate(TEXTS[1], LONG)
            assert output.outputs[0].finish_reason == "abort"
            assert "failed: RuntimeError: the device is gone" in str(output.error)
            assert (await llm.generate(TEXTS[0], GREEDY)).outputs[0].text == expected[0]
            engine_of(llm).check_integrity()

    asyncio.run(main())


def test_engine_death_reaches_everybody(folder: Path, monkeypatch: pytest.MonkeyPatch):
    async def main():
        llm = AsyncLLM(folder, max_num_seqs=1)
        fail(llm, range(4, 100), monkeypatch)
        calls = [asyncio.create_task(llm.generate([1, n], LONG)) for n in range(6)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        # Three steps fail, of one request each; the third ends all others with its own.
        died = [end for end in ends if isinstance(end, EngineDeadError)]
        aborted = [end for end in ends if end not in died]
        assert len(died) == 4 and all(end.outputs[0].finish_reason == "abort" for end in aborted)
        assert all("the device is gone" in str(end.__cause__) for end in died)
        assert not llm.is_alive
        with pytest.raises(EngineDeadError, match="the device is gone"):
            await llm.generate("a", GREEDY)
        await llm.close()

    asyncio.run(main())


def test_after_close_nothing_is_served(folder: Path):
    async def main():
        async with AsyncLLM(folder) as llm:
            gate = Gate(engine_of(llm))
            open_call = asyncio.create_task(llm.generate("Hello", LONG))
            await gate.entered()
            close = asyncio.create_task(llm.close())
            while llm._thread._messages.empty():
                await asyncio.sleep(0)
            gate.open()
            await close
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
