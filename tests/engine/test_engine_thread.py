"""A thread that runs an engine: reports reach their own mailboxes, whatever happens to others."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest
from engine_fakes import MemoryModel, greedy_reference, make_engine
from mailboxes import Mailbox, greedy, served

from assembler.engine.engine_thread import EngineDeadError, EngineThread
from assembler.errors import RequestError


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


def test_a_cancelled_request_stops_and_the_others_go_on():
    async def main():
        engine = make_engine(MemoryModel())
        thread = EngineThread(engine)
        first, second = Mailbox(), Mailbox()
        request_id = thread.submit([1], greedy(150), first, stream=True)
        thread.submit([2], greedy(20), second, stream=False)
        thread.cancel(request_id, first)
        await second.last()
        thread.close()
        assert len(first.reports) < 150 and not any(r.finished for r in first.reports)
        assert second.reports[-1].outputs[0].token_ids == greedy_reference([2], 20)
        engine.check_integrity()
        assert engine.is_finished()

    asyncio.run(main())


def test_running_requests_do_not_wait_for_a_stream_of_new_ones():
    """Each request that is added brings another one; a step runs after each."""

    async def main():
        engine = make_engine(MemoryModel())
        add, step, added, at_steps = engine.add_request, engine.step, [], []

        def add_request(*args, **options):
            added.append(1)
            if len(added) < 5:
                thread.submit([len(added)], greedy(3), boxes[len(added)], stream=False)
            add(*args, **options)

        def counted_step():
            at_steps.append(len(added))
            return step()

        engine.add_request, engine.step = add_request, counted_step
        boxes = [Mailbox() for _ in range(5)]
        thread = EngineThread(engine)
        thread.submit([9], greedy(3), boxes[0], stream=False)
        for box in boxes:
            await box.last()
        thread.close()
        assert at_steps[:5] == [1, 2, 3, 4, 5]

    asyncio.run(main())


def test_a_request_arrives_when_it_is_submitted():
    async def main():
        engine = make_engine(MemoryModel())
        step, go = engine.step, threading.Event()
        engine.step = lambda: go.wait() and step()
        thread = EngineThread(engine)
        first, second = Mailbox(), Mailbox()
        thread.submit([1], greedy(1), first, stream=False)
        thread.submit([2], greedy(1), second, stream=False)
        submitted = time.perf_counter()
        go.set()
        report = await second.last()
        thread.submit([2], greedy(1), third := Mailbox(), stream=False, arrival_time=1.5)
        assert (await third.last()).metrics.arrival_time == 1.5
        thread.close()
        assert report.metrics.arrival_time < submitted < report.metrics.first_token_time

    asyncio.run(main())


def test_names_of_requests():
    async def main():
        engine = make_engine(MemoryModel())
        thread = EngineThread(engine)
        first, second, third = Mailbox(), Mailbox(), Mailbox()
        submit = thread.submit
        assert submit([1], greedy(150), first, stream=True, request_id="async-0") == "async-0"
        with pytest.raises(RequestError, match="'async-0' is taken by an unfinished request"):
            submit([1], greedy(1), second, stream=False, request_id="async-0")
        assert submit([1], greedy(1), second, stream=False) != "async-0"
        thread.abort("never heard of")
        thread.abort("async-0")
        report = await first.last()
        assert report.outputs[0].finish_reason == "abort" and report.error is None
        submit([2], greedy(20), third, stream=False, request_id="async-0")
        thread.cancel("async-0", first)  # too late: that was another one
        assert (await third.last()).outputs[0].token_ids == greedy_reference([2], 20)
        thread.close()
        engine.check_integrity()

    asyncio.run(main())


def test_a_closed_thread_keeps_no_engine():
    engine = make_engine(MemoryModel())
    thread, known = EngineThread(engine), weakref.ref(engine)
    thread.close()
    del engine
    gc.collect()
    assert known() is None and not thread.is_alive


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
