"""Ctrl-C and failures at any place of a step leave an engine that serves on, and lose nothing."""

import signal
import threading

import pytest
from engine_fakes import MemoryModel, greedy_reference, make_engine, run

from assembler.engine.sampling_params import SamplingParams
from assembler.interrupts import held_back_interrupt

PROMPT = list(range(1, 14))
GREEDY = SamplingParams(temperature=0, max_tokens=3)


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """Also where the tests run in the background, and the shell has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(MemoryModel):
    """Ctrl-C arrives in one of its steps."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, input_ids, ctx):
        if len(self.steps) == self.step:
            signal.raise_signal(signal.SIGINT)
        return super().forward(input_ids, ctx)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_ctrl_c_waits_for_the_step_whose_outputs_are_reported_by_the_next(step):
    engine = make_engine(Interrupted(step))
    engine.add_request("a", PROMPT, GREEDY)
    engine.add_request("b", PROMPT[:4], SamplingParams(temperature=0, max_tokens=step + 1))
    seen, interrupts = {}, 0
    while not engine.is_finished():
        try:
            seen |= {output.request_id: output for output in engine.step()}
        except KeyboardInterrupt:
            interrupts += 1
        engine.check_integrity()
    assert interrupts == 1
    assert engine.model_runner.model.steps == [[13, 4]] + [[1, 1]] * step + [[1]] * (2 - step)
    assert seen["a"].outputs[0].token_ids == greedy_reference(PROMPT, 3)
    assert seen["b"].outputs[0].token_ids == greedy_reference(PROMPT[:4], step + 1)


def test_what_is_aborted_is_not_reported_later():
    engine = make_engine(Interrupted(2))
    engine.add_request("a", PROMPT, GREEDY)
    with pytest.raises(KeyboardInterrupt):
        run(engine)
    assert engine.abort("a") is None  # it had all its tokens
    assert engine.is_finished() and engine.step() == []


@pytest.mark.parametrize("place", ["mark_scheduled", "schedule", "update", "mark_token"])
def test_pages_of_a_step_that_failed_anywhere_are_not_shared(place, monkeypatch):
    """They are known when they are scheduled: until they are computed they hold anything."""
    engine = make_engine(MemoryModel())
    engine.add_request("a", PROMPT, GREEDY)
    at_request = place.startswith("mark")
    owner = engine._requests._requests["a"] if at_request else engine.scheduler
    real = getattr(owner, place)

    def fails(*args):
        if place == "schedule":
            real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, place, fails)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    engine.abort("a")
    engine.check_integrity()
    engine.add_request("b", PROMPT, GREEDY)
    output = run(engine)["b"]
    assert output.outputs[0].token_ids == greedy_reference(PROMPT, 3)
    assert output.metrics.num_cached_tokens == 0


def test_a_request_that_ended_in_an_interrupted_step_is_reported(monkeypatch):
    engine = make_engine(MemoryModel())
    one = SamplingParams(temperature=0, max_tokens=1)
    for name in "ab":
        engine.add_request(name, PROMPT, one)
    requests = engine._requests
    real = requests._output

    def fails(request):
        monkeypatch.setattr(requests, "_output", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(requests, "_output", fails)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert sorted(output.request_id for output in engine.step()) == ["a", "b"]
    assert engine.is_finished()


def test_a_second_ctrl_c_does_not_wait_and_blocks_nest():
    done = []
    with pytest.raises(KeyboardInterrupt), held_back_interrupt():
        with held_back_interrupt():
            signal.raise_signal(signal.SIGINT)
        done.append("the inner block")
        signal.raise_signal(signal.SIGINT)
        done.append("not this")
    assert done == ["the inner block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, lambda *_: None])
def test_handlers_of_all_kinds_are_there_again(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with held_back_interrupt():
            held = signal.getsignal(signal.SIGINT)
            assert (held == handler) == (handler == signal.SIG_IGN)
        with pytest.raises(KeyError), held_back_interrupt():
            raise KeyError
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_not_guarded():
    seen = []

    def run():
        with held_back_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
