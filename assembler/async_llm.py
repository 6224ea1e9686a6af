"""`AsyncLLM`: one model that serves many asyncio tasks at once.

A thread of its own runs the engine (`EngineThread`), so no event loop ever waits for a step. Tasks
hand it requests and cancellations; after each step it tells the event loops what is new. Outputs
are cumulative, so a slow reader finds the newest one and nothing piles up.

    tasks ──submit, cancel──> EngineThread ──step──> LLMEngine
      ^────────call_soon_threadsafe──────┘
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from assembler.engine.engine_thread import EngineDeadError, EngineThread, Report
from assembler.engine.outputs import RequestOutput
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.stats import EngineStats
from assembler.llm import LLM
from assembler.llm_inputs import Message, Prompt, params_for
from assembler.tokenizer import Tokenizer

__all__ = ["AsyncLLM", "EngineDeadError"]


class AsyncLLM:
    """A loaded model for asyncio: usable from any number of tasks, also of several event loops.

    A task that is cancelled ends its own request. A request that fails
    does so alone. Should the engine itself fail, every open call and every later one raises
    `EngineDeadError`, whose cause is the error.
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
        self._thread = EngineThread(self._llm.engine)
        # At the end of the program too, while threads still run.
        self._end = weakref.finalize(self, _close, self._thread, self._llm)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, if the checkpoint has one."""
        return self._llm.tokenizer

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together, at most."""
        return self._llm.engine.max_model_len

    @property
    def stats(self) -> EngineStats:
        """What the engine has done so far; the numbers go on changing."""
        return self._llm.engine.stats

    @property
    def is_alive(self) -> bool:
        """Whether requests can be served: neither closed nor failed."""
        return self._thread.is_alive

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> RequestOutput:
        """Generate for one prompt (text or token ids); returns when it has finished.

        What goes wrong while it runs ends it with `finish_reason` "abort" and `output.error`.

        Raises:
            RequestError: the request cannot be served.
            EngineDeadError: the engine has failed or was closed.
        """
        outputs = [output async for output in self._outputs(prompt, sampling_params, stream=False)]
        return outputs[-1]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Generate for one prompt, yielding how it stands whenever there is something new.

        The last output is finished. Errors are those of `generate`. Leaving the iterator early ends
        the request.
        """
        return self._outputs(prompt, sampling_params, stream=True)

    async def chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> RequestOutput:
        """Answer a conversation through the model's chat template."""
        return await self.generate(self.chat_prompt(messages), sampling_params)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, ready for the answer (see `LLM.chat_prompt`)."""
        return self._llm.chat_prompt(messages)

    async def close(self) -> None:
        """End all requests and the engine; open calls raise `EngineDeadError`."""
        await asyncio.to_thread(self._end)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _outputs(
        self, prompt: Prompt, sampling_params: SamplingParams | None, *, stream: bool
    ) -> AsyncIterator[RequestOutput]:
        """The newest output whenever there is one, up to the finished one."""
        (params,) = params_for([prompt], sampling_params, self._llm.get_default_sampling_params)
        mailbox = _Mailbox(asyncio.get_running_loop())
        request_id = self._thread.submit(prompt, params, mailbox, stream=stream)
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
                self._thread.cancel(request_id)


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
