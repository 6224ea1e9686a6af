"""One request as its caller sees it: prompt, samples with their text so far, timing."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Protocol

from assembler.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput
from assembler.engine.sequence import Sequence
from assembler.errors import RequestError
from assembler.tokenizer.stop_strings import StopStrings


class DetokenizerLike(Protocol):
    """Turns the tokens of one sequence into text as they come."""

    def push(self, token_ids: list[int]) -> str: ...

    def finish(self) -> str: ...


class Sample:
    """One of a request's sequences and the text of what it has generated."""

    def __init__(
        self, sequence: Sequence, detokenizer: DetokenizerLike | None, *, as_it_grows: bool
    ) -> None:
        """A sample without text.

        Args:
            detokenizer: a new one; None leaves the text empty.
            as_it_grows: False: the text is needed when the sequence has ended, and not before.
        """
        self.sequence = sequence
        self.text = ""
        self._detokenizer = detokenizer
        self._undecoded: list[int] = []
        stop = sequence.params.stop
        self._stop_strings = StopStrings(stop) if stop else None
        self._decodes_at_once = as_it_grows or bool(stop)

    def add_token(self, token_id: int) -> bool:
        """Take a generated token; True if that completes a stop string, which ends the text."""
        if self._detokenizer is None:
            return False
        self._undecoded.append(token_id)
        return self._decodes_at_once and self._decode()

    def finish(self) -> bool:
        """Decode what is held back for a next token; True if that completes a stop string."""
        if self._detokenizer is None:
            return False
        stopped = self._decode() or self._emit(self._detokenizer.finish())
        if self._stop_strings is not None:
            self.text += self._stop_strings.finish()
        return stopped

    def output(self) -> CompletionOutput:
        """What there is to report."""
        return CompletionOutput(
            index=self.sequence.index,
            text=self.text,
            token_ids=self.sequence.generated_token_ids,
            finish_reason=self.sequence.finish_reason,
        )

    def _decode(self) -> bool:
        token_ids, self._undecoded = self._undecoded, []
        return bool(token_ids) and self._emit(self._detokenizer.push(token_ids))

    def _emit(self, text: str) -> bool:
        if self._stop_strings is None:
            self.text += text
            return False
        out, stopped = self._stop_strings.push(text)
        self.text += out
        return stopped


class Request:
    """The sequences generated for one prompt, their text and metrics."""

    def __init__(
        self,
        sequences: SequenceOf[Sequence],
        prompt: str | None,
        detokenizer: Callable[[], DetokenizerLike] | None,
        arrival_time: float,
        *,
        stream: bool = True,
    ) -> None:
        """A request that arrived at `arrival_time` (`time.perf_counter()`).

        Args:
            sequences: one for each sample, in order.
            prompt: None when it was given as token ids.
            detokenizer: makes a new one; None leaves the texts empty.
            stream: whether anybody looks at it before it is finished.
        """
        self.request_id = sequences[0].request_id
        self.samples = [
            Sample(sequence, detokenizer() if detokenizer else None, as_it_grows=stream)
            for sequence in sequences
        ]
        self.prompt = prompt
        self.prompt_token_ids = sequences[0].prompt_token_ids
        self.stream = stream
        self.error: RequestError | None = None
        self.metrics = RequestMetrics(arrival_time, num_prompt_tokens=len(self.prompt_token_ids))

    @property
    def is_finished(self) -> bool:
        """Whether all samples have ended."""
        return all(sample.sequence.is_finished for sample in self.samples)

    def mark_scheduled(self, time: float) -> None:
        """A step that runs a part of the request begins at `time`."""
        if self.metrics.first_scheduled_time is None:
            cached = self.samples[0].sequence.num_cached_tokens or 0
            self.metrics = replace(
                self.metrics, first_scheduled_time=time, num_cached_tokens=cached
            )

    def output(self, time: float) -> RequestOutput:
        """What there is to report at `time`."""
        finished = self.is_finished
        count = sum(sample.sequence.num_generated_tokens for sample in self.samples)
        if count != self.metrics.num_generated_tokens or finished:
            self.metrics = replace(
                self.metrics,
                num_generated_tokens=count,
                first_token_time=self.metrics.first_token_time or (time if count else None),
                finished_time=time if finished else None,
            )
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[sample.output() for sample in self.samples],
            finished=finished,
            metrics=self.metrics,
            error=self.error,
        )
