"""A thread that runs an engine: what fails, and who is told."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from engine_fakes import (
    BreakingTokenizer,
    MemoryModel,
    ScriptedModel,
    greedy_reference,
    make_engine,
)
from mailboxes import Mailbox, greedy, served

from assembler.engine.engine_thread import EngineDeadError, EngineThread
from assembler.errors import RankError, RequestError


def test_an_exception_in_one_request_ends_that_one_alone():
    script = [9, 10, 7, 8, 8, 8]
    engine = make_engine(ScriptedModel(script), tokenizer=BreakingTokenizer())
    bad, good = served(engine, ([1], greedy(5)), ([1, 1, 1, 1], greedy(2)), stream=True)
    report = bad.reports[-1]
    assert report.outputs[0].finish_reason == "abort" and "KeyError" in str(report.error)
    assert isinstance(report.error.__cause__, KeyError)
    assert good.reports[-1].outputs[0].text == "  " and good.reports[-1].error is None


class Failing(MemoryModel):
    """Fails in the steps of these numbers."""

    def __init__(self, *numbers, error=MemoryError):
        super().__init__()
        self.numbers, self.error, self.count = numbers, error, 0

    def forward(self, input_ids, ctx):
        self.count += 1
        if self.count in self.numbers:
            raise self.error("no memory left")
        return super().forward(input_ids, ctx)


def test_a_step_that_fails_ends_the_requests_it_was_to_run():
    """The second request of those that run one at a time comes after the failure."""
    engine = make_engine(Failing(3), max_num_seqs=1)
    failed, unharmed = served(engine, ([1], greedy(5)), ([2], greedy(5)))
    report = failed.reports[-1]
    assert report.outputs[0].finish_reason == "abort" and len(report.outputs[0].token_ids) == 2
    assert "failed: MemoryError: no memory left" in str(report.error)
    assert isinstance(report.error.__cause__, MemoryError)
    assert unharmed.reports[-1].outputs[0].token_ids == greedy_reference([2], 5)
    assert engine.is_finished()


def test_who_has_ended_when_the_step_fails_is_told_so():
    """Also if it is aborted right then: there is an answer for everybody."""

    async def main():
        engine = make_engine(MemoryModel())
        note, steps = engine._count, []

        def failing(*args):  # after the tokens of the third step are added
            steps.append(1)
            if len(steps) == 3:
                thread.abort(short_id)
                raise MemoryError("no memory left")
            note(*args)

        engine._count = failing
        short, long = Mailbox(), Mailbox()
        thread = EngineThread(engine)
        short_id = thread.submit([1], greedy(3), short, stream=False)
        thread.submit([2], greedy(9), long, stream=False)
        assert (await short.last()).outputs[0].finish_reason == "length"
        assert (await long.last()).outputs[0].finish_reason == "abort"
        thread.close()
        engine.check_integrity()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("model", "num_served", "cause"),
    [
        (Failing(1, 2, 3, 4), 2, MemoryError),  # three in a row
        (Failing(1, 2, 4, 5, 6), 5, MemoryError),  # the third step of them is a good one
        (Failing(2, error=RankError), 1, RankError),
    ],
)
def test_all_are_told_when_the_engine_fails_for_good(model, num_served, cause):
    async def main():
        thread = EngineThread(make_engine(model))
        for _ in range(num_served):
            box = Mailbox()
            thread.submit([1], greedy(1), box, stream=False)
            assert (await box.last()).finished
            thread.submit([], greedy(1), refused := Mailbox(), stream=False)
            assert isinstance(await refused.last(), RequestError)  # which is no good step
        assert thread.is_alive
        boxes = [Mailbox() for _ in range(3)]
        for box in boxes:
            with suppress(EngineDeadError):
                thread.submit([1], greedy(50), box, stream=False)
                report = await box.last()
                assert isinstance(report, EngineDeadError)
                assert isinstance(report.__cause__, cause)
        with pytest.raises(EngineDeadError, match=f"{cause.__name__}: no memory left"):
            thread.submit([1], greedy(1), Mailbox(), stream=False)
        assert not thread.is_alive
        thread.close()

    asyncio.run(main())
