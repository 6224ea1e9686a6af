"""A step in flight: while the device runs one step, the host schedules and prepares the next.

The next step is made as if every sequence that samples gets one more token. Where that token goes
the device puts it: from what the step in flight has sampled into the next one's input ids. The
host reads it one step late. A sequence that turns out to have ended there has one more token in
flight, which is thrown away; its pages are free at once, since whatever uses them next runs later.
(Overlap scheduling of SGLang; asynchronous scheduling of vLLM.)

What the host has to know before it can sample again (penalties count the token, say) makes a step
that is read before the next one is made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from assembler.engine.host_copies import to_device
from assembler.engine.sampler import Sampler
from assembler.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from assembler.engine.sequence import Sequence

_log = logging.getLogger(__name__)


def runs_asynchronously(device: torch.device) -> bool:
    """Whether `device` computes while the host goes on, in an order that events can tell."""
    return device.type in ("cuda", "xpu")


@dataclass(frozen=True)
class LateTokens:
    """Input ids of a step that the step before it samples."""

    sampled: torch.Tensor  # [R] of the step before, on the device; negative: there is none
    sources: list[int]  # which of them ...
    rows: list[int]  # ... go into which input ids

    def put_into(self, input_ids: torch.Tensor) -> None:
        """Set them in `input_ids` [T]; the host does not wait."""
        # A sequence that got no token has ended: what it runs as its token is thrown away.
        sampled = self.sampled.clamp(min=0)
        if self.sources == self.rows == list(range(len(sampled))):  # as in most steps
            input_ids[: len(sampled)] = sampled
            return
        sources = to_device(self.sources, torch.int64, input_ids.device)
        rows = to_device(self.rows, torch.int64, input_ids.device)
        input_ids.index_copy_(0, rows, sampled[sources])


class SampledTokens:
    """The tokens [R] of a step, on their way from the device to the host."""

    def __init__(self, on_device: torch.Tensor) -> None:
        """Start the copy of `on_device` behind what the device has been given so far."""
        self.on_device = on_device
        self._host, self._arrived = on_device, None
        if runs_asynchronously(on_device.device):
            self._host = torch.empty_like(on_device, device="cpu", pin_memory=True)
            self._host.copy_(on_device, non_blocking=True)
            self._arrived = torch.get_device_module(on_device.device).Event()
            self._arrived.record()

    def read(self) -> list[int]:
        """The token ids, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


@dataclass(frozen=True)
class Flight:
    """A step that was launched and whose tokens were not read."""

    batch: ScheduledBatch
    tokens: SampledTokens | list[int | None]  # a list: they were read at once

    @property
    def is_read(self) -> bool:
        """Whether the host has its tokens, so that nothing is gained by making the next first."""
        return isinstance(self.tokens, list)

    @property
    def live_items(self) -> list[ScheduledSequence]:
        """What it runs of sequences that have not ended meanwhile."""
        return [item for item in self.batch.items if not item.sequence.is_finished]

    @property
    def request_ids(self) -> list[str]:
        """The requests that it runs a part of."""
        return [*dict.fromkeys(item.sequence.request_id for item in self.batch.items)]

    def read(self) -> list[int | None]:
        """The tokens, once they are there; None: a sequence has got none."""
        if isinstance(self.tokens, list):
            return self.tokens
        return Sampler.found(self.tokens.read(), self.batch.sampling_sequences)

    def late_tokens(self, following: ScheduledBatch) -> LateTokens | None:
        """The input ids of the step `following` that this one samples."""
        places = {id(s): place for place, s in enumerate(self.batch.sampling_sequences)}
        sources, rows, row = [], [], 0
        for item in following.items:
            if item.start == len(item.sequence):
                sources.append(places[id(item.sequence)])
                rows.append(row)
            row += item.num_new_tokens
        return LateTokens(self.tokens.on_device, sources, rows) if rows else None


@contextmanager
def unread_tokens(sequences: Iterable[Sequence]) -> Iterator[None]:
    """Within, tokens that the host has not read stand in `sequences` as 0: lengths are right."""
    late = [sequence for sequence in sequences if sequence.num_unread_tokens]
    for sequence in late:
        sequence.token_ids += [0] * sequence.num_unread_tokens
    try:
        yield
    finally:
        for sequence in late:
            del sequence.token_ids[-sequence.num_unread_tokens :]


class ReasonsToWait:
    """Which steps have to be read at once; the log tells each reason once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def waits(self, batch: ScheduledBatch) -> bool:
        """Whether the host must have the tokens of `batch` before it makes another step."""
        reason = _reason(batch)
        if reason is None:
            return False
        if reason not in self._told:
            self._told.add(reason)
            _log.info(
                "steps of requests with %s do not overlap: their tokens are read first", reason
            )
        return True


def _reason(batch: ScheduledBatch) -> str | None:
    if any(item.num_prompt_logits for item in batch.items):
        return "prompt_logprobs"
    return _reason_to_sample(batch.sampling_sequences)


def _reason_to_sample(sequences: SequenceOf[Sequence]) -> str | None:
    """What of `sequences` needs each token on the host."""
    for sequence in sequences:
        state = sequence.sampling
        if state.is_plain:
            continue
        if state.counts is not None:
            return "penalties"
        if state.params.logprobs is not None:
            return "logprobs"
        if state.params.bad_words:
            return "bad_words"
    return None
