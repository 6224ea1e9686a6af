"""The requests that have not ended: what a step's tokens make of their texts, and how they end."""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf

from assembler.engine.outputs import FinishReason, RequestOutput
from assembler.engine.request import Request, Sample
from assembler.engine.scheduler import Scheduler
from assembler.engine.sequence import Sequence
from assembler.errors import RequestError


class UnfinishedRequests:
    """Requests by id, beside the scheduler that runs their sequences."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(self, request: Request) -> None:
        """Queue the sequences of a new request."""
        self._requests[request.request_id] = request
        for sample in request.samples:
            self._scheduler.add(sample.sequence)

    def of(self, sequence: Sequence) -> Request:
        """The request that `sequence`, which has not ended, belongs to."""
        return self._requests[sequence.request_id]

    def sequences(self) -> list[Sequence]:
        """Those that have not ended."""
        samples = (sample for request in self._requests.values() for sample in request.samples)
        return [sample.sequence for sample in samples if not sample.sequence.is_finished]

    def advance(self, sequences: SequenceOf[Sequence]) -> list[RequestOutput]:
        """Take up the newest token of each of `sequences`; what there is to report.

        A request of which a sample fails ends when all of its samples have their tokens.
        """
        sampled = time.perf_counter()
        advanced = {}
        for sequence in sequences:
            request = advanced[sequence.request_id] = self._requests[sequence.request_id]
            request.mark_token(sequence, sampled)
            try:
                self._add_token(request.samples[sequence.index])
            except Exception as error:
                self._stop(sequence, "abort")
                request.error = request.error or _failure(request, error)
            if sequence.finish_reason == "abort" and request.error is None:
                message = f"request {sequence.request_id!r}: {sequence.sampling.failure}"
                request.error = RequestError(message)
        for request in advanced.values():
            if request.error is not None:
                self._end(request)
        reported = [r for r in advanced.values() if r.stream or r.is_finished]
        return [self._output(request) for request in reported]

    def abort(self, request_id: str, error: Exception | None = None) -> RequestOutput | None:
        """End a request now and return its last output; None if it has ended (or never was).

        `error` is why, if it failed.
        """
        request = self._requests.get(request_id)
        if request is None:
            return None
        if error is not None:
            request.error = _failure(request, error)
        self._end(request)
        return self._output(request)

    def report_ended(self) -> list[RequestOutput]:
        """The outputs of requests that have ended in a step which was not completed."""
        ended = [request for request in self._requests.values() if request.is_finished]
        return [self._output(request) for request in ended]

    def _add_token(self, sample: Sample) -> None:
        """Decode the newest token of `sample` and end it at a stop string."""
        sequence = sample.sequence
        if sequence.finish_reason == "abort":  # there was no token
            sample.finish()
        elif sequence.finish_reason == "stop":
            sample.add_stop_token(sequence.token_ids[-1])
            sample.finish()
        elif sample.add_token(sequence.token_ids[-1]):
            self._stop(sequence, "stop")
        elif sequence.is_finished and sample.finish():
            sequence.finish_reason = "stop"  # the last token allowed completed a stop string

    def _stop(self, sequence: Sequence, reason: FinishReason) -> None:
        """End `sequence`, or change why it has ended in this step."""
        if sequence.is_finished:
            sequence.finish_reason = reason
        else:
            self._scheduler.finish(sequence, reason)

    def _end(self, request: Request) -> None:
        """Abort the samples of `request` that have not ended, also one that waits for pages."""
        for sample in request.samples:
            if not sample.sequence.is_finished:
                self._scheduler.finish(sample.sequence, "abort")
                try:
                    sample.finish()
                except Exception as error:
                    request.error = request.error or _failure(request, error)

    def _output(self, request: Request) -> RequestOutput:
        """The output of `request`, which is forgotten if it has ended."""
        try:
            request.describe_logprobs()
        except Exception as error:
            request.error = request.error or _failure(request, error)
            self._end(request)
        if request.is_finished:
            del self._requests[request.request_id]
        return request.output(time.perf_counter())


def _failure(request: Request, error: Exception) -> RequestError:
    """What is said of an exception in the text of `request`."""
    failure = RequestError(
        f"request {request.request_id!r} failed: {type(error).__name__}: {error}"
    )
    failure.__cause__ = error
    return failure
