"""`AsyncLLM`: one model that serves many asyncio tasks at once.

A thread of its own runs the engine (`EngineThread`), so no event loop ever waits for a step. Tasks
hand it requests and cancellations; after each step it tells the event loops what is new. Outputs
are cumulative, so a slow reader finds the newest one and nothing piles up.

    tasks ──submit, cancel──> EngineThread ──step──> LLMEngine
      ^────────call_soon_threadsafe──────┘
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from assembler.engine.engine_thread import EngineDeadError, EngineThread, Report
from assembler.engine.outputs import RequestOutput
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.stats import EngineStats
from assembler.llm import LLM
from assembler.llm_chat import chat_prompts
from assembler.llm_inputs import Message, Prompt, as_prompt, params_for
from assembler.tokenizer import Tokenizer

__all__ = ["AsyncLLM", "EngineDeadError"]


class AsyncLLM:
    """A loaded model for asyncio: usable from any number of tasks, also of several event loops.

    A task that is cancelled ends its own request. A request that fails does so alone, and a step
    that fails ends the requests it was to run. Should three steps in a row fail, or a rank be lost,
    every open call and every later one raises `EngineDeadError`, whose cause is the error.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> None:
        """Load `model`; arguments and errors are those of `LLM`.

        It takes as long as loading does: within a running event loop call
        `await asyncio.to_thread(AsyncLLM, model, ...)`.
        """
        self._llm = LLM(model, progress=progress, **options)
        self.max_model_len: int = self._llm.engine.max_model_len  # of prompt and output together
        self.stats: EngineStats = self._llm.engine.stats  # the numbers go on changing
        self._thread = EngineThread(self._llm.engine)
        # Ids of requests whose prompts are being encoded, and whether to abort them then.
        self._to_be_aborted: dict[str, bool] = {}
        # At the end of the program too, while threads still run.
        self._end = weakref.finalize(self, _close, self._thread, self._llm)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, if the checkpoint has one."""
        return self._llm.tokenizer

    @property
    def is_alive(self) -> bool:
        """Whether requests can be served: neither closed nor failed."""
        return self._thread.is_alive

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
    ) -> RequestOutput:
        """Generate for one prompt (as of `LLM.generate`); returns when it has finished.

        What goes wrong while it runs ends it with `finish_reason` "abort" and `output.error`.

        Args:
            request_id: a name for `abort`; None: one is made up.

        Raises:
            RequestError: the request cannot be served.
            EngineDeadError: the engine has failed or was closed.
        """
        outputs = self._outputs(prompt, sampling_params, request_id, stream=False)
        return [output async for output in outputs][-1]

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Generate for one prompt, yielding how it stands whenever there is something new.

        The last output is finished. Errors are those of `generate`, and come with the first output
        that is asked for. Leaving the iterator early ends the request.
        """
        return self._outputs(prompt, sampling_params, request_id, stream=True)

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> RequestOutput:
        """Answer a conversation through the model's chat template; `options`: see `LLM.chat`."""
        tokenizer = self._llm.get_tokenizer()
        (prompt,) = await asyncio.to_thread(chat_prompts, tokenizer, [messages], **options)
        return await self.generate(prompt, sampling_params, request_id)

    def chat_prompt(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """The token ids of a conversation, ready for the answer (see `LLM.chat_prompt`)."""
        return self._llm.chat_prompt(messages, **options)

    async def abort(self, request_id: str) -> None:
        """End a request: its call returns what there is, with `finish_reason` "abort".

        Nothing happens if it has ended, or never was.
        """
        if request_id in self._to_be_aborted:
            self._to_be_aborted[request_id] = True
        self._thread.abort(request_id)

    async def close(self) -> None:
        """End all requests and the engine; open calls raise `EngineDeadError`."""
        await asyncio.to_thread(self._end)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _outputs(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None,
        request_id: str | None,
        *,
        stream: bool,
    ) -> AsyncIterator[RequestOutput]:
        """The newest output whenever there is one, up to the finished one."""
        (params,) = params_for([prompt], sampling_params, self._llm.get_default_sampling_params)
        mailbox = _Mailbox(asyncio.get_running_loop())
        request_id = await self._submit(prompt, params, mailbox, request_id, stream=stream)
        finished = False
        try:
            while not finished:
                report = await mailbox.newest()
                if isinstance(report, Exception):
                    finished = True
                    raise report
                finished = report.finished
                yield report
        finally:
            if not finished:  # cancelled, or nobody reads on
                self._thread.cancel(request_id, mailbox)

    async def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        mailbox: _Mailbox,
        request_id: str | None,
        *,
        stream: bool,
    ) -> str:
        """Hand a request to the engine's thread; its id.

        Texts are encoded in another thread: neither this loop nor the next step waits for it.
        """
        arrival_time = time.perf_counter()
        given, text = as_prompt(prompt)
        if request_id is not None:
            self._to_be_aborted[request_id] = False
        try:
            if isinstance(given, str) and self.tokenizer is not None:
                given, text = await asyncio.to_thread(self.tokenizer.encode, given), given
        finally:
            aborted = self._to_be_aborted.pop(request_id, False)
        request_id = self._thread.submit(
            given,
            params,
            mailbox,
            stream=stream,
            text=text,
            request_id=request_id,
            arrival_time=arrival_time,
        )
        if aborted:
            self._thread.abort(request_id)
        return request_id


class _Mailbox:
    """Where a task finds the newest report on its request; older ones are thrown away."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._arrived = asyncio.Event()
        self._report: Report | None = None

    def put(self, report: Report) -> None:
        """Called in the loop's thread."""
        self._report = report
        self._arrived.set()

    async def newest(self) -> Report:
        """The newest report that has not been taken; waits for one."""
        await self._arrived.wait()
        self._arrived.clear()
        report, self._report = self._report, None
        assert report is not None
        return report


def _close(thread: EngineThread, llm: LLM) -> None:
    thread.close()
    llm.exit()
