"""What the engine reports about a request, after every step that advanced it.

Importing this module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from assembler.errors import RequestError

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class RequestMetrics:
    """When things happened to a request, in seconds of `time.perf_counter()`; None: not yet."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0  # of all samples together
    num_cached_tokens: int = 0  # of the prompt, that were found in the cache instead of computed

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from arrival to the first generated token."""
        return _elapsed(self.arrival_time, self.first_token_time)

    @property
    def queue_time(self) -> float | None:
        """Seconds the request waited before any of it ran."""
        return _elapsed(self.arrival_time, self.first_scheduled_time)

    @property
    def total_time(self) -> float | None:
        """Seconds from arrival to the end."""
        return _elapsed(self.arrival_time, self.finished_time)

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed: tokens after the first, per second since it; None before two tokens."""
        seconds = _elapsed(self.first_token_time, self.finished_time)
        if not seconds or self.num_generated_tokens < 2:
            return None
        return (self.num_generated_tokens - 1) / seconds


def _elapsed(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely the model found one token, before any setting changed its logits."""

    logprob: float
    rank: int  # 1: the likeliest
    decoded_token: str | None = None  # the token's text by itself; None without a tokenizer


@dataclass(frozen=True)
class CompletionOutput:
    """One generated continuation, as far as it has come."""

    index: int  # which of the request's samples
    text: str  # "" when the engine has no tokenizer; ends before a stop string or stop token
    token_ids: list[int]  # all generated tokens, the stopping one included
    finish_reason: FinishReason | None = None  # None: still running
    stop_reason: int | str | None = None  # the stop string or stop token; None: another end
    cumulative_logprob: float | None = None  # of all tokens; None: no `logprobs` were asked for
    # Of each token: itself, and as many of the likeliest as `logprobs` says, by token id.
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A request and what has been generated for it so far."""

    request_id: str
    prompt: str | None  # None when the prompt was given as token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    error: RequestError | None = None  # why the request was aborted by the engine itself
    # Of each token of the prompt, if `prompt_logprobs` were asked for; nothing foretells the first.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
