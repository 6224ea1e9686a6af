"""A thread that runs an engine: reports reach their own mailboxes, whatever happens to others."""

from __future__ import annotations

import asyncio
import threading

import pytest
from engine_fakes import FakeTokenizer, MemoryModel, ScriptedModel, greedy_reference, make_engine

from assembler.engine.engine_thread import EngineDeadError, EngineThread
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import RequestError


class Mailbox:
    """Keeps all reports; `last` waits for the one that ends the request."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reports = []
        self._ended = asyncio.Event()

    def put(self, report) -> None:
        self.reports.append(report)
        if isinstance(report, Exception) or report.finished:
            self._ended.set()

    async def last(self):
        await self._ended.wait()
        return self.reports[-1]


def greedy(count):
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


def served(engine, *requests, stream=False):
    """The mailboxes of (prompt, params) pairs, served at once."""

    async def main():
        thread = EngineThread(engine)
        try:
            boxes = [Mailbox() for _ in requests]
            for (prompt, params), box in zip(requests, boxes, strict=True):
                thread.submit(prompt, params, box, stream=stream)
            for box in boxes:
                await box.last()
            return boxes
        finally:
            thread.close()
            engine.check_integrity()

    return asyncio.run(main())


def test_every_request_gets_its_own_reports():
    requests = [([n, n + 1], greedy(3 + n)) for n in range(5)]
    boxes = served(make_engine(MemoryModel()), *requests)
    for (prompt, params), box in zip(requests, boxes, strict=True):
        (report,) = box.reports  # nothing before the end
        assert report.outputs[0].token_ids == greedy_reference(prompt, params.max_tokens)


def test_who_streams_is_told_after_every_token():
    (box,) = served(make_engine(MemoryModel()), ([1], greedy(4)), stream=True)
    assert [len(report.outputs[0].token_ids) for report in box.reports] == [1, 2, 3, 4]


def test_a_refused_request_is_told_so_and_no_other():
    engine = make_engine(MemoryModel(), max_model_len=20)
    bad, good, worse = served(engine, ([], greedy(2)), ([1], greedy(2)), ([999], greedy(2)))
    assert isinstance(bad.reports[-1], RequestError)
    assert isinstance(worse.reports[-1], RequestError)
    assert good.reports[-1].outputs[0].token_ids == greedy_reference([1], 2)


def test_an_exception_in_one_request_ends_that_one_alone():
    class Tokenizer(FakeTokenizer):
        def detokenizer(self, *args):
            detokenizer = super().detokenizer(*args)
            push = detokenizer.push

            def fails(token_ids):
                if 7 in token_ids:
                    raise KeyError("no such piece")
                return push(token_ids)

            detokenizer.push = fails
            return detokenizer

    script = [9, 10, 7, 8, 8, 8]
    engine = make_engine(ScriptedModel(script), tokenizer=Tokenizer())
    bad, good = served(engine, ([1], greedy(5)), ([1, 1, 1, 1], greedy(2)), stream=True)
    report = bad.reports[-1]
    assert report.outputs[0].finish_reason == "abort" and "KeyError" in str(report.error)
    assert isinstance(report.error.__cause__, KeyError)
    assert good.reports[-1].outputs[0].text == "  " and good.reports[-1].error is None


def test_a_cancelled_request_stops_and_the_others_go_on():
    async def main():
        engine = make_engine(MemoryModel())
        thread = EngineThread(engine)
        first, second = Mailbox(), Mailbox()
        request_id = thread.submit([1], greedy(150), first, stream=True)
        thread.submit([2], greedy(20), second, stream=False)
        thread.cancel(request_id)
        await second.last()
        thread.close()
        assert len(first.reports) < 150 and not any(r.finished for r in first.reports)
        assert second.reports[-1].outputs[0].token_ids == greedy_reference([2], 20)
        engine.check_integrity()
        assert engine.is_finished()

    asyncio.run(main())


def test_all_are_told_when_the_engine_fails():
    class Broken(MemoryModel):
        def forward(self, input_ids, ctx):
            if len(self.steps) == 3:
                raise MemoryError("no memory left")
            return super().forward(input_ids, ctx)

    async def main():
        thread = EngineThread(make_engine(Broken()))
        boxes = [Mailbox() for _ in range(3)]
        for box in boxes:
            thread.submit([1], greedy(50), box, stream=False)
        for box in boxes:
            report = await box.last()
            assert isinstance(report, EngineDeadError)
            assert isinstance(report.__cause__, MemoryError)
        with pytest.raises(EngineDeadError, match="MemoryError: no memory left"):
            thread.submit([1], greedy(1), Mailbox(), stream=False)
        assert not thread.is_alive
        thread.close()

    asyncio.run(main())


def test_close_ends_open_requests():
    async def main():
        engine = make_engine(MemoryModel(), max_model_len=200)
        thread = EngineThread(engine)
        box = Mailbox()
        thread.submit([1], greedy(199), box, stream=True)
        while not box.reports:
            await asyncio.sleep(0)
        thread.close()
        report = await box.last()
        assert isinstance(report, EngineDeadError) and "closed" in str(report)
        assert engine.is_finished()
        engine.check_integrity()
        thread.close()  # again

    asyncio.run(main())


def test_event_loops_of_several_threads_are_served():
    engine = make_engine(MemoryModel())
    thread = EngineThread(engine)
    found = {}

    def use(number):
        async def main():
            box = Mailbox()
            thread.submit([number], greedy(5), box, stream=False)
            found[number] = (await box.last()).outputs[0].token_ids

        asyncio.run(main())

    users = [threading.Thread(target=use, args=(n,)) for n in range(1, 4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    thread.close()
    assert found == {n: greedy_reference([n], 5) for n in range(1, 4)}
