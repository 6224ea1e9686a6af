"""A thread that runs an engine for others: they submit requests, it reports on them.

The engine belongs to the thread. Others talk to it through a queue, and are told what is new in
their own event loops, all that one loop has to know of a step in one call.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from assembler.engine.llm_engine import LLMEngine
from assembler.engine.outputs import RequestOutput
from assembler.engine.sampling_params import SamplingParams

Report = RequestOutput | Exception


class EngineDeadError(RuntimeError):
    """The engine has failed (the cause says why) or was closed: nothing can be served."""


class Mailbox(Protocol):
    """Where reports on a request go."""

    loop: asyncio.AbstractEventLoop

    def put(self, report: Report) -> None:
        """Called in the thread of `loop`."""


@dataclass(frozen=True)
class _Submission:
    request_id: str
    prompt: str | Sequence[int]
    params: SamplingParams
    mailbox: Mailbox
    stream: bool


@dataclass(frozen=True)
class _Cancellation:
    request_id: str


class _Close:
    """The last message."""


class EngineThread:
    """Serves requests from a thread of its own until it is closed or its engine fails."""

    def __init__(self, engine: LLMEngine) -> None:
        """Start the thread. `engine` must not be used elsewhere from now on."""
        self._engine = engine
        self._messages: queue.SimpleQueue[_Submission | _Cancellation | _Close] = (
            queue.SimpleQueue()
        )
        self._numbers = itertools.count()
        self._mailboxes: dict[str, Mailbox] = {}  # of the unfinished requests
        self._lock = threading.Lock()  # between submissions and the end
        self._end: EngineDeadError | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are served."""
        return self._end is None

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        mailbox: Mailbox,
        *,
        stream: bool,
    ) -> str:
        """Queue a request; returns its id.

        Reports go to `mailbox`; the last one is a finished output or an exception.

        Raises:
            EngineDeadError: the engine has failed or was closed.
        """
        with self._lock:
            if self._end is not None:
                raise _again(self._end)
            request_id = f"async-{next(self._numbers)}"
            self._messages.put(_Submission(request_id, prompt, params, mailbox, stream))
        return request_id

    def cancel(self, request_id: str) -> None:
        """End a request, whose mailbox gets nothing more."""
        self._messages.put(_Cancellation(request_id))

    def close(self) -> None:
        """End all requests and the thread, and wait for it."""
        self._messages.put(_Close())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        """What the thread runs."""
        end = EngineDeadError("the engine was closed")
        try:
            while self._take_messages():
                self._deliver([(o.request_id, o) for o in self._engine.step()])
        except BaseException as error:  # whatever it is: who waits has to know
            end = EngineDeadError(f"the engine has failed: {type(error).__name__}: {error}")
            end.__cause__ = error
        with self._lock:
            self._end = end
        self._drain()

    def _take_messages(self) -> bool:
        """Obey all messages, waiting for one if there is nothing to run; False at the last."""
        while True:
            try:
                message = self._messages.get(block=self._engine.is_finished())
            except queue.Empty:
                return True
            if isinstance(message, _Close):
                return False
            if isinstance(message, _Cancellation):
                self._mailboxes.pop(message.request_id, None)
                self._engine.abort(message.request_id)
            else:
                self._add(message)

    def _add(self, new: _Submission) -> None:
        """Hand a request to the engine; what is wrong with it goes to its own mailbox."""
        self._mailboxes[new.request_id] = new.mailbox
        try:
            self._engine.add_request(new.request_id, new.prompt, new.params, stream=new.stream)
        except Exception as error:
            self._deliver([(new.request_id, error)])

    def _deliver(self, reports: Sequence[tuple[str, Report]]) -> None:
        """Put each report into the mailbox of its request."""
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Report]]] = defaultdict(
            list
        )
        for request_id, report in reports:
            mailbox = self._mailboxes.get(request_id)
            if mailbox is None:
                continue  # cancelled
            if isinstance(report, Exception) or report.finished:
                del self._mailboxes[request_id]
            by_loop[mailbox.loop].append((mailbox, report))
        for loop, letters in by_loop.items():
            with suppress(RuntimeError):  # the loop has ended, and its tasks with it
                loop.call_soon_threadsafe(_put_all, letters)

    def _drain(self) -> None:
        """Tell everybody who still waits that this is the end."""
        with suppress(queue.Empty):
            while True:
                message = self._messages.get(block=False)
                if isinstance(message, _Submission):
                    self._mailboxes[message.request_id] = message.mailbox
        with suppress(Exception):  # a failed engine need not be able to
            for request_id in self._mailboxes:
                self._engine.abort(request_id)
        self._deliver([(request_id, _again(self._end)) for request_id in [*self._mailboxes]])


def _put_all(letters: Sequence[tuple[Mailbox, Report]]) -> None:
    for mailbox, report in letters:
        mailbox.put(report)


def _again(end: EngineDeadError) -> EngineDeadError:
    """A copy to raise: a traceback belongs to one raise."""
    copy = EngineDeadError(str(end))
    copy.__cause__ = end.__cause__
    return copy
