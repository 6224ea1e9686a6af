"""One request as its caller sees it: prompt, samples with their text so far, timing."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Protocol

from assembler.engine.logprobs import TokenLogprobs
from assembler.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from assembler.engine.sequence import Sequence
from assembler.errors import RequestError
from assembler.tokenizer.stop_strings import StopStrings


class DetokenizerLike(Protocol):
    """Turns the tokens of one sequence into text as they come."""

    def push(self, token_ids: list[int]) -> str: ...

    def finish(self) -> str: ...


class DecoderLike(Protocol):
    """Says what token ids stand for."""

    def decode(self, token_ids: SequenceOf[int], skip_special_tokens: bool = True) -> str: ...

    def detokenizer(self, skip_special_tokens: bool = True) -> DetokenizerLike: ...


class Sample:
    """One of a request's sequences and the text of what it has generated."""

    def __init__(
        self, sequence: Sequence, tokenizer: DecoderLike | None, *, as_it_grows: bool
    ) -> None:
        """A sample without text.

        Args:
            tokenizer: None leaves the text empty.
            as_it_grows: False: the text is needed when the sequence has ended, and not before.
        """
        self.sequence = sequence
        self.text = ""
        params = sequence.params
        self._detokenizer = tokenizer and tokenizer.detokenizer(params.skip_special_tokens)
        self._undecoded: list[int] = []
        self._stop_strings = None
        if params.stop:
            self._stop_strings = StopStrings(params.stop, params.include_stop_str_in_output)
        self._decodes_at_once = as_it_grows or bool(params.stop)
        self._logprobs = DescribedLogprobs(tokenizer)

    def add_token(self, token_id: int) -> bool:
        """Take a generated token; True if that completes a stop string, which ends the text."""
        if self._detokenizer is None:
            return False
        self._undecoded.append(token_id)
        return self._decodes_at_once and self._decode()

    def add_stop_token(self, token_id: int) -> None:
        """Take the token that ends the sequence; its text counts only if that is asked for."""
        if self.sequence.params.include_stop_str_in_output:
            self.add_token(token_id)

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
        sequence = self.sequence
        known = None if sequence.params.logprobs is None else self._known_logprobs()
        return CompletionOutput(
            index=sequence.index,
            text=self.text,
            token_ids=sequence.generated_token_ids,
            finish_reason=sequence.finish_reason,
            stop_reason=self._stop_reason(),
            cumulative_logprob=None if known is None else sum(token.logprobs[0] for token in known),
            logprobs=None if known is None else [*self._logprobs.made],
        )

    def describe_logprobs(self) -> None:
        """Put the newest tokens' log-probabilities into words for `output`."""
        if self.sequence.params.logprobs is not None:
            self._logprobs.extend(self._known_logprobs())

    def _known_logprobs(self) -> list[TokenLogprobs]:
        """Those of the tokens there are: the sampler knows them a step before the engine does."""
        sequence = self.sequence
        return sequence.sampling.logprobs[: sequence.num_generated_tokens]

    def _stop_reason(self) -> int | str | None:
        if self.sequence.finish_reason != "stop":
            return None
        matched = None if self._stop_strings is None else self._stop_strings.matched
        return self.sequence.stop_reason if matched is None else matched

    def _decode(self) -> bool:
        token_ids, self._undecoded = self._undecoded, []
        return bool(token_ids) and self._emit(self._detokenizer.push(token_ids))

    def _emit(self, text: str) -> bool:
        if self._stop_strings is None:
            self.text += text
            return False
        sequence = self.sequence
        may_stop = sequence.num_generated_tokens > sequence.params.min_tokens
        out, stopped = self._stop_strings.push(text, may_stop)
        self.text += out
        return stopped


class DescribedLogprobs:
    """The log-probabilities of a growing list of tokens as users get them, each made once."""

    def __init__(self, tokenizer: DecoderLike | None) -> None:
        self._tokenizer = tokenizer
        self.made: list[dict[int, Logprob]] = []

    def extend(self, known: SequenceOf[TokenLogprobs]) -> None:
        """Bring `made` up to one dict a token; `known` is what it was before, and more."""
        text = None if self._tokenizer is None else self._text
        self.made += [token.described(text) for token in known[len(self.made) :]]

    def _text(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)


class Request:
    """The sequences generated for one prompt, their text and metrics."""

    def __init__(
        self,
        sequences: SequenceOf[Sequence],
        prompt: str | None,
        tokenizer: DecoderLike | None,
        arrival_time: float,
        *,
        stream: bool = True,
    ) -> None:
        """A request that arrived at `arrival_time` (`time.perf_counter()`).

        Args:
            sequences: one for each sample, in order.
            prompt: None when it was given as token ids.
            tokenizer: None leaves the texts empty.
            stream: whether anybody looks at it before it is finished.
        """
        self.request_id = sequences[0].request_id
        self.samples = [Sample(sequence, tokenizer, as_it_grows=stream) for sequence in sequences]
        self._prompt_logprobs = DescribedLogprobs(tokenizer)
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

    def mark_token(self, sequence: Sequence, time: float) -> None:
        """One of the sequences may have got a token at `time`."""
        if self.metrics.first_token_time is None and sequence.num_generated_tokens:
            self.metrics = replace(self.metrics, first_token_time=time)

    def describe_logprobs(self) -> None:
        """Put what is new of the log-probabilities into words; whatever the tokenizer raises."""
        for sample in self.samples:
            sample.describe_logprobs()
        sequence = self.samples[0].sequence  # works out those of the prompt
        if sequence.params.prompt_logprobs is not None:
            self._prompt_logprobs.extend(sequence.sampling.prompt_logprobs)

    def output(self, time: float) -> RequestOutput:
        """What there is to report at `time`; raises nothing."""
        finished = self.is_finished
        count = sum(sample.sequence.num_generated_tokens for sample in self.samples)
        if count != self.metrics.num_generated_tokens or finished:
            self.metrics = replace(
                self.metrics,
                num_generated_tokens=count,
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
            prompt_logprobs=self._of_prompt(),
        )

    def _of_prompt(self) -> list[dict[int, Logprob] | None] | None:
        """The prompt's log-probabilities; the first token has none."""
        if self.samples[0].sequence.params.prompt_logprobs is None:
            return None
        return [None, *self._prompt_logprobs.made]
