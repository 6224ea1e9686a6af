"""One request as its caller sees it: prompt, text so far, timing."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from assembler.engine.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from assembler.engine.sequence import Sequence
from assembler.errors import RequestError
from assembler.tokenizer.stop_strings import StopStrings


class DetokenizerLike(Protocol):
    """Turns the tokens of one sequence into text as they come."""

    def push(self, token_ids: list[int]) -> str: ...

    def finish(self) -> str: ...


class Request:
    """A sequence being generated, its text and its metrics."""

    def __init__(
        self,
        sequence: Sequence,
        prompt: str | None,
        detokenizer: DetokenizerLike | None,
        arrival_time: float,
    ) -> None:
        """A request that arrived at `arrival_time` (`time.perf_counter()`).

        Args:
            prompt: None when it was given as token ids.
            detokenizer: a new one; None leaves the text empty.
        """
        self.sequence = sequence
        self.prompt = prompt
        self.text = ""
        self.error: RequestError | None = None
        self.metrics = RequestMetrics(arrival_time, num_prompt_tokens=sequence.num_prompt_tokens)
        self._detokenizer = detokenizer
        stop = sequence.params.stop
        self._stop_strings = StopStrings(stop) if stop else None

    def mark_scheduled(self, time: float) -> None:
        """The first step that runs a part of the request begins at `time`."""
        if self.metrics.first_scheduled_time is None:
            self.metrics = replace(self.metrics, first_scheduled_time=time)

    def add_text(self, token_id: int) -> bool:
        """Decode a generated token; True if that completes a stop string, which ends the text."""
        if self._detokenizer is None:
            return False
        return self._emit(self._detokenizer.push([token_id]))

    def finish_text(self) -> bool:
        """Decode what is held back for a next token; True if that completes a stop string."""
        if self._detokenizer is None:
            return False
        stopped = self._emit(self._detokenizer.finish())
        if self._stop_strings is not None:
            self.text += self._stop_strings.finish()
        return stopped

    def output(self, time: float) -> RequestOutput:
        """What there is to report at `time`."""
        sequence = self.sequence
        count = sequence.num_generated_tokens
        if count != self.metrics.num_generated_tokens or sequence.is_finished:
            self.metrics = replace(
                self.metrics,
                num_generated_tokens=count,
                first_token_time=self.metrics.first_token_time or (time if count else None),
                finished_time=time if sequence.is_finished else None,
            )
        return RequestOutput(
            request_id=sequence.request_id,
            prompt=self.prompt,
            prompt_token_ids=sequence.prompt_token_ids,
            outputs=[self._completion(sequence.finish_reason)],
            finished=sequence.is_finished,
            metrics=self.metrics,
            error=self.error,
        )

    def _completion(self, finish_reason: FinishReason | None) -> CompletionOutput:
        return CompletionOutput(
            index=0,
            text=self.text,
            token_ids=self.sequence.generated_token_ids,
            finish_reason=finish_reason,
        )

    def _emit(self, text: str) -> bool:
        if self._stop_strings is None:
            self.text += text
            return False
        out, stopped = self._stop_strings.push(text)
        self.text += out
        return stopped
