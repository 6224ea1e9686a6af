"""Requests to an `EngineThread`, and where its reports on them go."""

from __future__ import annotations

import asyncio

from assembler.engine.engine_thread import EngineThread
from assembler.engine.sampling_params import SamplingParams


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
