"""A thread that runs an engine for others: they submit requests, it reports on them.

The engine belongs to the thread. Others talk to it through a queue, and are told what is new in
their own event loops, all that one loop has to know of a step in one call.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from assembler.engine.llm_engine import LLMEngine
from assembler.engine.outputs import RequestOutput
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import RankError, RequestError

_MOST_FAILURES = 3  # steps in a row that may fail before the engine is given up

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
    text: str | None
    stream: bool
    arrival_time: float


@dataclass(frozen=True)
class _Cancellation:
    request_id: str
    mailbox: Mailbox | None  # whose request it is; None: whoever's, and its mailbox is told


class _Close:
    """The last message."""


class EngineThread:
    """Serves requests from a thread of its own until it is closed or its engine fails for good."""

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
        self._num_failures = 0  # of steps, since one has succeeded
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
        text: str | None = None,
        request_id: str | None = None,
        arrival_time: float | None = None,
    ) -> str:
        """Queue a request; returns its id.

        Reports go to `mailbox`; the last one is a finished output or an exception. A prompt that is
        a text is encoded in this thread, while no request advances: token ids are better.

        Args:
            text: what the token ids of `prompt` say.
            request_id: None: one is made up.
            arrival_time: when its user sent it (`time.perf_counter()`); None: now.

        Raises:
            EngineDeadError: the engine has failed or was closed.
            RequestError: another unfinished request has this id.
        """
        arrival_time = time.perf_counter() if arrival_time is None else arrival_time
        with self._lock:
            if self._end is not None:
                raise _again(self._end)
            if request_id is None:
                names = (f"async-{number}" for number in self._numbers)
                request_id = next(name for name in names if name not in self._mailboxes)
            elif request_id in self._mailboxes:
                raise RequestError(f"request_id {request_id!r} is taken by an unfinished request")
            self._mailboxes[request_id] = mailbox
            self._messages.put(_Submission(request_id, prompt, params, text, stream, arrival_time))
        return request_id

    def cancel(self, request_id: str, mailbox: Mailbox) -> None:
        """End the request that reports to `mailbox`, which gets nothing more."""
        self._messages.put(_Cancellation(request_id, mailbox))

    def abort(self, request_id: str) -> None:
        """End a request, if there is one of this id; its mailbox gets the aborted output."""
        self._messages.put(_Cancellation(request_id, None))

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
                self._step()
        except BaseException as error:  # whatever it is: who waits has to know
            end = EngineDeadError(f"the engine has failed: {type(error).__name__}: {error}")
            end.__cause__ = error
        with self._lock:
            self._end = end
        self._drain()
        del self._engine  # whoever keeps this object does not keep the model

    def _step(self) -> None:
        """Run the engine once. A step that fails ends the requests it was to run.

        Raises:
            Exception: the last of `_MOST_FAILURES` in a row, or one after which no step can run.
        """
        num_steps = self._engine.stats.num_steps
        try:
            outputs = self._engine.step()
        except RankError:
            raise
        except Exception as error:
            self._num_failures += 1
            if self._num_failures == _MOST_FAILURES:
                raise
            outputs = self._engine.abort_step(error)
        if self._engine.stats.num_steps > num_steps:
            self._num_failures = 0
        self._deliver([(output.request_id, output) for output in outputs])

    def _take_messages(self) -> bool:
        """Obey the messages that are there, and no later ones; False at the last.

        Waits for one if there is nothing to run.
        """
        messages = [self._messages.get()] if self._engine.is_finished() else []
        messages += [self._messages.get() for _ in range(self._messages.qsize())]
        for message in messages:
            if isinstance(message, _Close):
                return False
            if isinstance(message, _Cancellation):
                self._cancel(message)
            else:
                self._add(message)
        return True

    def _cancel(self, end: _Cancellation) -> None:
        """End a request, unless it has ended and another one has its name."""
        mailbox = self._mailboxes.get(end.request_id)
        if mailbox is None or end.mailbox not in (None, mailbox):
            return
        output = self._engine.abort(end.request_id)
        if end.mailbox is not None:
            del self._mailboxes[end.request_id]
        elif output is not None:
            self._deliver([(end.request_id, output)])

    def _add(self, new: _Submission) -> None:
        """Hand a request to the engine; what is wrong with it goes to its own mailbox."""
        try:
            self._engine.add_request(
                new.request_id,
                new.prompt,
                new.params,
                stream=new.stream,
                text=new.text,
                arrival_time=new.arrival_time,
            )
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
