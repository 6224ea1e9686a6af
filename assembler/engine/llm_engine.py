"""The engine's loop: requests in, one step at a time, outputs out."""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf

from assembler.engine.admission import Admission, TokenizerLike
from assembler.engine.model_runner import ModelRunner, current_device
from assembler.engine.options import MAX_LOGPROBS
from assembler.engine.outputs import RequestOutput
from assembler.engine.overlap import Flight, ReasonsToWait, unread_tokens
from assembler.engine.request import Request
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.scheduled_batch import ScheduledBatch
from assembler.engine.scheduler import Scheduler
from assembler.engine.stats import EngineStats
from assembler.engine.unfinished_requests import UnfinishedRequests
from assembler.errors import RequestError
from assembler.interrupts import held_back_interrupt


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
        max_logprobs: int = MAX_LOGPROBS,
        overlap: bool = False,
    ) -> None:
        """An engine without requests; `build_engine` makes one from a model and options.

        Args:
            tokenizer: None: prompts are token ids, outputs have no text and nothing is an eos.
            vocab_size: rows of the model's embedding; token ids are below it.
            max_model_len: tokens of prompt and output together, at most.
            prefix_caching, length_border, max_logprobs: see `Admission`.
            overlap: make the next step while the device runs one, see `overlap`.
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
            max_logprobs=max_logprobs,
        )
        self._requests = UnfinishedRequests(scheduler)
        self._reasons_to_wait = ReasonsToWait() if overlap else None
        self._flight: Flight | None = None  # the step whose tokens are read next
        self._outputs: list[RequestOutput] = []  # made, and not yet returned by `step`
        self._in_step: list[str] = []  # requests of the step that runs, or failed

    def add_request(
        self,
        request_id: str,
        prompt: str | SequenceOf[int],
        params: SamplingParams | None = None,
        *,
        stream: bool = True,
        text: str | None = None,
        arrival_time: float | None = None,
    ) -> None:
        """Queue a request; `step` will report on it.

        Args:
            prompt: text, or the token ids of it.
            params: None: the defaults.
            stream: False: `step` reports on it once, when it has finished (and saves the work of
                saying after every token how it stands).
            text: what the token ids of `prompt` say, if that is known; for `RequestOutput.prompt`.
            arrival_time: when its user sent it (`time.perf_counter()`); None: now.

        Raises:
            RequestError: the request cannot be served; the engine is unchanged.
        """
        arrival_time = time.perf_counter() if arrival_time is None else arrival_time
        params = params or SamplingParams()
        if request_id in self._requests:
            raise RequestError(f"request_id {request_id!r} is taken by an unfinished request")
        sequences = self.admission.sequences(request_id, prompt, params)
        text = prompt if isinstance(prompt, str) else text
        self._requests.add(Request(sequences, text, self.tokenizer, arrival_time, stream=stream))

    def step(self) -> list[RequestOutput]:
        """Run the model once; report on every request that got a token.

        If the model raises, no request has changed: the next step tries the same again. Ctrl-C is
        held back until the step is through; what it has to report is then left to the next one.
        """
        if self._requests:
            with held_back_interrupt():
                try:
                    self._run_step()
                except BaseException:
                    self._recover()
                    raise
        outputs, self._outputs = self._outputs, []
        return outputs

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and return its last output; None if it has ended (or never was)."""
        self._outputs = [output for output in self._outputs if output.request_id != request_id]
        return self._requests.abort(request_id)

    def abort_step(self, error: Exception) -> list[RequestOutput]:
        """End the requests of the step that just failed with `error`.

        Returns their last outputs, and those of requests that had ended before it failed.
        """
        outputs = (self._requests.abort(request_id, error) for request_id in self._in_step)
        reported, self._outputs = self._outputs, []
        return [*reported, *(output for output in outputs if output is not None)]

    def is_finished(self) -> bool:
        """Whether every request has ended and was reported on."""
        return not (self._requests or self._outputs)

    def check_integrity(self) -> None:
        """Assert that requests, queues and pages agree: nothing is leaked or shared wrongly."""
        scheduler = self.scheduler
        scheduler.check_integrity()
        unfinished = set(map(id, self._requests.sequences()))
        assert unfinished == {id(s) for s in (*scheduler.running, *scheduler.waiting)}
        if self.is_finished():
            assert scheduler.page_pool.num_free == scheduler.page_pool.num_pages

    def _run_step(self) -> None:
        """Run a step and add what is to be reported to `_outputs`."""
        start = time.perf_counter()
        flight, self._flight = self._flight, None
        following = None
        self._in_step = []
        with current_device(self.model_runner.device):
            if flight is None or not flight.live_items:
                flight = self._launch(None)
                assert flight is not None, "there is work, and nothing can run"
            else:
                self._in_step = flight.request_ids
            if not flight.is_read:
                following = self._launch(flight)
            live = ScheduledBatch(flight.live_items)
            token_ids = flight.read()
        self._outputs += self._requests.advance(self.scheduler.update(flight.batch, token_ids))
        self._flight = following
        self._count(live, time.perf_counter() - start)

    def _launch(self, before: Flight | None) -> Flight | None:
        """Schedule and launch a step, behind the one `before` it; None if nothing can run."""
        batch = self.scheduler.schedule()
        if not batch.items:
            return None
        self._in_step = [*self._in_step, *(item.sequence.request_id for item in batch.items)]
        launched = time.perf_counter()
        for item in batch.items:
            self._requests.of(item.sequence).mark_scheduled(launched)
        late = None if before is None else before.late_tokens(batch)
        reasons = self._reasons_to_wait
        overlaps = reasons is not None and not reasons.waits(batch)
        run = self.model_runner.launch if overlaps else self.model_runner.execute
        with unread_tokens(item.sequence for item in batch.items):
            flight = Flight(batch, run(batch, late))
        self.scheduler.launched(batch)
        return flight

    def _recover(self) -> None:
        """After a failure anywhere in a step: what runs is computed anew, what ended is reported.

        The pages that the step was to fill are known already, and hold anything.
        """
        self.scheduler.restart()
        self._outputs += self._requests.report_ended()

    def _count(self, batch: ScheduledBatch, seconds: float) -> None:
        """Add a step to the statistics."""
        decoded = sum(item.is_decode for item in batch.items)
        prefilled = batch.num_tokens - decoded
        stats, scheduler = self.stats, self.scheduler
        stats.num_steps += 1
        graphs = self.model_runner.graphs
        stats.num_graph_steps = 0 if graphs is None else graphs.num_replays
        stats.num_decode_tokens += decoded
        stats.decode_time += seconds * decoded / batch.num_tokens
        stats.num_prefill_tokens += prefilled
        stats.prefill_time += seconds * prefilled / batch.num_tokens
        stats.num_generated_tokens += sum(item.samples for item in batch.items)
        stats.num_started_tokens = scheduler.num_started_tokens
        stats.num_cached_tokens = scheduler.num_cached_tokens
        stats.num_preemptions = scheduler.num_preemptions
