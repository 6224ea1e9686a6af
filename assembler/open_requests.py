"""The requests of an `LLM`: queueing them, running the engine, and what is new for whom.

A request is read by whoever called `generate`, by an open stream or by `LLM.step`. Each step of the
engine may bring news for all of them, whoever has asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from assembler.engine.llm_engine import LLMEngine
from assembler.engine.outputs import RequestOutput
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import RequestError
from assembler.llm_inputs import Prompt, as_prompt
from assembler.model.dry_run import blaming_equations
from assembler.model.spec import ModelSpec


class OpenRequests:
    """Requests to one engine, until it is closed. One thread calls it at a time."""

    def __init__(self, engine: LLMEngine, spec: ModelSpec) -> None:
        """None yet. `spec`: of the model that the engine runs, for what errors say."""
        self._engine: LLMEngine | None = engine
        self._spec = spec
        self._count = 0
        self._streamed: dict[str, RequestOutput | None] = {}  # what each open stream will yield
        self._queued: dict[str, RequestOutput | None] = {}  # what `take_queued` will return
        self._dropped: list[str] = []  # to be aborted
        self._is_in_engine = False

    @property
    def engine(self) -> LLMEngine:
        """What runs them.

        Raises:
            RequestError: it was closed.
        """
        if self._engine is None:
            raise RequestError(
                "this LLM has been closed, by exit() or at the end of its `with`: make another one"
            )
        return self._engine

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be run, nor for `take_queued` to return."""
        return self._engine is None or (
            self._engine.is_finished() and not any(self._queued.values())
        )

    def add(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], *, stream: bool
    ) -> list[str]:
        """Hand every prompt to the engine, or none if one of them is refused; their ids."""
        ids: list[str] = []
        refused: list[str] = []
        for number, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
            request_id = str(self._count)
            self._count += 1
            try:
                given, text = as_prompt(prompt)
                with self._in_engine() as engine:
                    engine.add_request(request_id, given, own, stream=stream, text=text)
                ids.append(request_id)
            except RequestError as error:
                refused.append(str(error) if len(prompts) == 1 else f"prompt {number}: {error}")
            except BaseException:
                self.abort(ids)
                raise
        if refused:
            self.abort(ids)
            raise RequestError("\n".join(refused))
        return ids

    def queue(self, prompt: Prompt, params: SamplingParams) -> str:
        """Add a request for `take_queued` to report on; its id."""
        (request_id,) = self.add([prompt], [params], stream=True)
        self._queued[request_id] = None
        return request_id

    def take_queued(self) -> list[RequestOutput]:
        """What is new of the requests of `queue`."""
        outputs = [output for output in self._queued.values() if output is not None]
        for output in outputs:
            if output.finished:
                del self._queued[output.request_id]
            else:
                self._queued[output.request_id] = None
        return outputs

    def stream(self, prompt: Prompt, params: SamplingParams) -> Iterator[RequestOutput]:
        """Add a request, and yield how it stands whenever there is something new."""
        (request_id,) = self.add([prompt], [params], stream=True)
        self._streamed[request_id] = None
        finished = False
        try:
            while not finished:
                if self._streamed[request_id] is None:
                    self.step()
                output, self._streamed[request_id] = self._streamed[request_id], None
                if output is not None:
                    finished = output.finished
                    yield output
        finally:
            del self._streamed[request_id]
            if not finished:
                self._drop(request_id)

    def step(self) -> list[RequestOutput]:
        """Run the engine once; what it says, which streams and the queue have taken note of."""
        self._abort_dropped()
        with self._in_engine() as engine, blaming_equations(self._spec):
            outputs = engine.step()
        self._note(outputs)
        return outputs

    def abort(self, ids: Sequence[str]) -> list[RequestOutput]:
        """End requests now; the last outputs of those that had not ended.

        Streams end with them; of the queue they are forgotten.
        """
        for request_id in ids:
            self._queued.pop(request_id, None)
        with self._in_engine() as engine:
            outputs = [engine.abort(request_id) for request_id in ids]
        ended = [output for output in outputs if output is not None]
        self._note(ended)
        return ended

    def close(self) -> None:
        """Abort what streams and the queue wait for, and let go of the engine."""
        if self._engine is not None:
            self.abort([*self._streamed, *self._queued])
            self._engine = None

    def _note(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            for place in (self._streamed, self._queued):
                if output.request_id in place:
                    place[output.request_id] = output

    def _drop(self, request_id: str) -> None:
        """Abort a request that nobody reads, or let the next step do so.

        The garbage collector may close a stream at any time, also while the engine works.
        """
        self._dropped.append(request_id)
        if not self._is_in_engine:
            self._abort_dropped()

    def _abort_dropped(self) -> None:
        while self._dropped and self._engine is not None:
            self.abort([self._dropped.pop()])

    @contextmanager
    def _in_engine(self) -> Iterator[LLMEngine]:
        """The engine; streams that are closed meanwhile leave it alone."""
        engine, before = self.engine, self._is_in_engine
        self._is_in_engine = True
        try:
            yield engine
        finally:
            self._is_in_engine = before
