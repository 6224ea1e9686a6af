"""The engine's loop: requests in, one step at a time, outputs out."""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf

from assembler.engine.admission import Admission, TokenizerLike
from assembler.engine.model_runner import ModelRunner, current_device
from assembler.engine.outputs import RequestOutput
from assembler.engine.request import Request
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.scheduled_batch import ScheduledBatch
from assembler.engine.scheduler import Scheduler
from assembler.engine.sequence import Sequence, SequenceStatus
from assembler.engine.stats import EngineStats
from assembler.errors import RequestError


class LLMEngine:
    """Generates for many requests at once. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        model_runner: ModelRunner,
        scheduler: Scheduler,
        tokenizer: TokenizerLike | None,
        *,
        vocab_size: int,
        max_model_len: int,
        prefix_caching: bool = True,
        length_border: int | None = None,
    ) -> None:
        """An engine without requests; `build_engine` makes one from a model and options.

        Args:
            tokenizer: None: prompts are token ids, outputs have no text and nothing is an eos.
            vocab_size: rows of the model's embedding; token ids are below it.
            max_model_len: tokens of prompt and output together, at most.
            prefix_caching: see `Admission`.
            length_border: see `Admission`.
        """
        self.model_runner = model_runner
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        graphs = model_runner.graphs
        self.stats = EngineStats(graph_memory=0 if graphs is None else graphs.memory)
        self.admission = Admission(
            tokenizer,
            scheduler.page_pool,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            prefix_caching=prefix_caching,
            length_border=length_border,
        )
        self._requests: dict[str, Request] = {}  # the unfinished ones

    def add_request(
        self,
        request_id: str,
        prompt: str | SequenceOf[int],
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
    ) -> None:
        """Queue a request; `step` will report on it.

        Args:
            prompt: text, or the token ids of it.
            params: None: the defaults.
            stream: False: `step` reports on it once, when it has finished (and saves the work of
                saying after every token how it stands).

        Raises:
            RequestError: the request cannot be served; the engine is unchanged.
        """
        arrival_time = time.perf_counter()
        params = params or SamplingParams()
        if request_id in self._requests:
            raise RequestError(f"request_id {request_id!r} is taken by an unfinished request")
        sequences = self.admission.sequences(request_id, prompt, params)
        text = prompt if isinstance(prompt, str) else None
        self._requests[request_id] = Request(
            sequences, text, self.tokenizer, arrival_time, stream=stream
        )
        for sequence in sequences:
            self.scheduler.add(sequence)

    def step(self) -> list[RequestOutput]:
        """Run the model once; report on every request that got a token.

        If the model raises, no request has changed: the next step tries the same again.
        """
        if self.is_finished():
            return []
        batch = self.scheduler.schedule()
        assert batch.items, "there is work, and nothing can run"
        start = time.perf_counter()
        for item in batch.items:
            self._requests[item.sequence.request_id].mark_scheduled(start)
        try:
            with current_device(self.model_runner.device):
                token_ids = self.model_runner.execute(batch)
        except BaseException:
            self.scheduler.restart()
            raise
        self.scheduler.update(batch, token_ids)
        sampled = time.perf_counter()
        advanced = {}
        for sequence in batch.sampling_sequences:
            request = self._requests[sequence.request_id]
            request.mark_token(sequence, sampled)
            self._advance(request, sequence)
            advanced[request.request_id] = request
        outputs = [
            self._output(request)
            for request in advanced.values()
            if request.stream or request.is_finished
        ]
        self._count(batch, time.perf_counter() - start)
        return outputs

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and return its last output; None if it has ended (or never was)."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        for sample in request.samples:
            if not sample.sequence.is_finished:
                self.scheduler.finish(sample.sequence, "abort")
                try:
                    sample.finish()
                except Exception as error:
                    self._fail(request, error)
        return self._output(request)

    def is_finished(self) -> bool:
        """Whether every request has ended."""
        return not self._requests

    def has_unfinished_requests(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self._requests)

    def check_integrity(self) -> None:
        """Assert that requests, queues and pages agree: nothing is leaked or shared wrongly."""
        scheduler = self.scheduler
        scheduler.check_integrity()
        samples = [s for request in self._requests.values() for s in request.samples]
        unfinished = {id(s.sequence) for s in samples if not s.sequence.is_finished}
        assert unfinished == {id(s) for s in (*scheduler.running, *scheduler.waiting)}
        if self.is_finished():
            assert scheduler.page_pool.num_free == scheduler.page_pool.num_pages

    def _advance(self, request: Request, sequence: Sequence) -> None:
        """Decode the newest token of `sequence` and end it at a stop string.

        What goes wrong in it ends this request alone.
        """
        if request.error is not None and sequence.is_finished:
            return  # another sample of this step has failed
        if sequence.status is SequenceStatus.WAITING:
            return  # it got no token and is computed anew
        sample = request.samples[sequence.index]
        try:
            if sequence.finish_reason == "abort":
                sample.finish()
                message = f"request {sequence.request_id!r}: {sequence.sampling.failure}"
                self._end_with(request, RequestError(message))
            elif sequence.finish_reason == "stop":
                sample.add_stop_token(sequence.token_ids[-1])
                sample.finish()
            elif sample.add_token(sequence.token_ids[-1]):
                self._stop(sequence)
            elif sequence.is_finished and sample.finish():
                sequence.finish_reason = "stop"  # the last token allowed completed a stop string
        except Exception as error:
            self._fail(request, error)

    def _stop(self, sequence: Sequence) -> None:
        """End `sequence` at a stop string."""
        if sequence.is_finished:
            sequence.finish_reason = "stop"
        else:
            self.scheduler.finish(sequence, "stop")

    def _fail(self, request: Request, error: Exception) -> None:
        """End `request` because of an exception in its own text."""
        failure = RequestError(
            f"request {request.request_id!r} failed: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        self._end_with(request, failure)

    def _end_with(self, request: Request, error: RequestError) -> None:
        """End all samples of `request` now: one that waits for pages would fail only later."""
        for sample in request.samples:
            if not sample.sequence.is_finished:
                self.scheduler.finish(sample.sequence, "abort")
            sample.sequence.finish_reason = "abort"
        request.error = error

    def _count(self, batch: ScheduledBatch, seconds: float) -> None:
        """Add a step to the statistics."""
        decoded = sum(item.is_decode for item in batch.items)
        prefilled = batch.num_tokens - decoded
        stats, scheduler = self.stats, self.scheduler
        stats.num_steps += 1
        graphs = self.model_runner.graphs
        stats.num_graph_steps = 0 if graphs is None else graphs.num_replays
        stats.num_decode_tokens += decoded
        stats.decode_time += seconds if decoded else 0.0
        stats.num_prefill_tokens += prefilled
        stats.prefill_time += seconds if prefilled else 0.0
        stats.num_generated_tokens += len(batch.sampling_sequences)
        stats.num_started_tokens = scheduler.num_started_tokens
        stats.num_cached_tokens = scheduler.num_cached_tokens
        stats.num_preemptions = scheduler.num_preemptions

    def _output(self, request: Request) -> RequestOutput:
        """The output of `request`, which is forgotten if it has ended."""
        try:
            request.describe_logprobs()
        except Exception as error:
            self._fail(request, error)
        if request.is_finished:
            del self._requests[request.request_id]
        return request.output(time.perf_counter())
