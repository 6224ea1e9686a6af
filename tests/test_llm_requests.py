"""`LLM`: requests that are aborted, dropped, or open when it is closed; what ends an answer."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from pathlib import Path

import pytest
from tiny_llama import EOS, save_llama

import assembler
from assembler import LLM, RequestOutput, SamplingParams
from assembler.errors import RequestError

LONG = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


@pytest.fixture
def llm(folder: Path) -> LLM:
    return LLM(folder)


def test_a_stream_that_is_aborted_ends(llm: LLM):
    stream, other = llm.stream("Hello", LONG), llm.stream("Hello", LONG)
    request_id = next(stream).request_id
    next(other)
    output = llm.abort(request_id)
    assert output.finished and output.outputs[0].finish_reason == "abort"
    assert list(stream) == [output]
    assert llm.abort(request_id) is None
    assert len(list(other)[-1].outputs[0].token_ids) == 100
    assert llm.is_finished()
    llm.engine.check_integrity()


def test_a_stream_that_is_closed_within_a_step_leaves_the_engine_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
):
    """As the garbage collector may do it; the next step ends the request."""
    runner, calls = llm.engine.model_runner, []
    execute, abort = runner.execute, llm.engine.abort
    dropped, kept = llm.stream("a", LONG), llm.stream("b", LONG)
    request_id = next(dropped).request_id

    def closing(*args):
        dropped.close()
        calls.append("step")
        return execute(*args)

    def noted(request_id: str):
        calls.append(request_id)
        return abort(request_id)

    monkeypatch.setattr(runner, "execute", closing)
    monkeypatch.setattr(llm.engine, "abort", noted)
    next(kept)
    assert calls == ["step"]
    next(kept)
    assert calls == ["step", request_id, "step"]
    kept.close()
    assert llm.engine.is_finished()
    llm.engine.check_integrity()


def test_a_bar_that_cannot_be_made_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    def no_bar(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("assembler.llm.GenerationBar", no_bar)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], LONG)
    assert llm.is_finished()
    llm.engine.check_integrity()


# the end ------------------------------------------------------------------------------------------


def test_a_closed_llm_lets_go_of_everything(folder: Path):
    with LLM(folder) as llm:
        known = [weakref.ref(thing) for thing in (llm.engine, llm.model, *llm.model.parameters())]
        known += [
            weakref.ref(tensor) for cache in llm.engine.model_runner.kv_caches for tensor in cache
        ]
        stream = llm.stream("Hello", LONG)
        begun = next(stream)
        queued = llm.add_request("Hello", LONG)
        assert queued != begun.request_id
    gc.collect()
    assert [ref() for ref in known] == [None] * len(known)
    [last] = stream
    assert last.finished and last.outputs[0].finish_reason == "abort"
    assert last.outputs[0].token_ids == begun.outputs[0].token_ids
    assert llm.is_finished()
    for call in (
        lambda: llm.generate("a", LONG, use_tqdm=False),
        lambda: next(llm.stream("a", LONG)),
        lambda: llm.add_request("a", LONG),
        lambda: llm.chat([{"role": "user", "content": "Hi"}], LONG, use_tqdm=False),
        llm.step,
        lambda: llm.abort(queued),
        lambda: llm.engine,
        lambda: llm.model,
    ):
        with pytest.raises(RequestError, match="this LLM has been closed"):
            call()
    llm.exit()  # again
    assert llm.tokenizer.encode("Hello")  # needs no engine


def test_the_engine_is_public(llm: LLM):
    assert isinstance(llm.engine, assembler.LLMEngine)
    llm.engine.add_request("mine", [1, 2], SamplingParams(max_tokens=2, ignore_eos=True))
    outputs: list[RequestOutput] = []
    while not llm.engine.is_finished():
        outputs += llm.engine.step()
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2]


# what ends an answer ------------------------------------------------------------------------------


def test_a_second_end_of_sequence_is_named(tmp_path: Path):
    """As in vLLM: the tokenizer's own end is no stop reason, one that only the config lists is."""
    save_llama(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, 70]}))
    llm = LLM(tmp_path)

    def end(token_id: int, **settings: object) -> object:
        params = SamplingParams(
            temperature=0.0, max_tokens=3, allowed_token_ids=[token_id], **settings
        )
        [output] = llm.generate("a", params, use_tqdm=False)
        return output.outputs[0].finish_reason, output.outputs[0].stop_reason

    assert end(EOS) == ("stop", None)
    assert end(70) == ("stop", 70)
    assert end(70, ignore_eos=True) == ("length", None)
    assert end(EOS, ignore_eos=True, stop_token_ids=[EOS]) == ("stop", EOS)


def test_without_a_tokenizer_it_is_said_that_nothing_ends_an_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save_llama(tmp_path, tokenizer=False)
    with caplog.at_level(logging.WARNING, "assembler"):
        llm = LLM(tmp_path)
        llm.generate([[1, 2], [3]], SamplingParams(max_tokens=2), use_tqdm=False)
    (record,) = caplog.records
    assert "no token ends an answer but SamplingParams(stop_token_ids=" in record.getMessage()


def test_time_of_mixed_steps_is_shared_out(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    count, steps = llm.engine._count, []

    def noted(batch, seconds: float) -> None:
        decoded = sum(item.is_decode for item in batch.items)
        steps.append((decoded, batch.num_tokens - decoded, seconds))
        count(batch, seconds)

    monkeypatch.setattr(llm.engine, "_count", noted)
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=9, ignore_eos=True))
    next(stream)
    llm.generate(["The sea, the sea!"], SamplingParams(max_tokens=3), use_tqdm=False)
    assert any(decoded and prefilled for decoded, prefilled, _ in steps)
    stats = llm.engine.stats
    decode_time = sum(seconds * decoded / (decoded + other) for decoded, other, seconds in steps)
    assert stats.decode_time == pytest.approx(decode_time)
    total = sum(seconds for *_, seconds in steps)
    assert stats.prefill_time + stats.decode_time == pytest.approx(total)
