"""The engine's loop: requests in, one step at a time, outputs out."""

from __future__ import annotations

import operator
import time
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from assembler.engine.model_runner import ModelRunner
from assembler.engine.outputs import RequestOutput
from assembler.engine.request import DetokenizerLike, Request
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.scheduler import Scheduler
from assembler.engine.sequence import Sequence
from assembler.errors import RequestError


class TokenizerLike(Protocol):
    """What the engine asks of a tokenizer."""

    eos_token_ids: Collection[int]

    def encode(self, text: str) -> list[int]: ...

    def detokenizer(self) -> DetokenizerLike: ...


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
    ) -> None:
        """An engine without requests; `build_engine` makes one from a model and options.

        Args:
            tokenizer: None: prompts are token ids, outputs have no text and nothing is an eos.
            vocab_size: rows of the model's embedding; token ids are below it.
            max_model_len: tokens of prompt and output together, at most.
        """
        self.model_runner = model_runner
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self._requests: dict[str, Request] = {}  # the unfinished ones

    def add_request(
        self,
        request_id: str,
        prompt: str | SequenceOf[int],
        params: SamplingParams | None = None,
    ) -> None:
        """Queue a request; `step` will report on it.

        Args:
            prompt: text, or the token ids of it.
            params: None: the defaults.

        Raises:
            RequestError: the request cannot be served; the engine is unchanged.
        """
        arrival_time = time.perf_counter()
        params = params or SamplingParams()
        if request_id in self._requests:
            raise RequestError(f"request_id {request_id!r} is taken by an unfinished request")
        token_ids = self._encode(prompt)
        self._check_in_vocabulary("stop_token_ids", params.stop_token_ids)
        if params.stop and self.tokenizer is None:
            raise RequestError("there is no tokenizer to find stop strings: use stop_token_ids")
        sequence = Sequence(
            request_id,
            token_ids,
            params,
            max_length=self._max_length(len(token_ids), params),
            eos_token_ids=self.tokenizer.eos_token_ids if self.tokenizer else (),
        )
        detokenizer = self.tokenizer.detokenizer() if self.tokenizer else None
        text = prompt if isinstance(prompt, str) else None
        self._requests[request_id] = Request(sequence, text, detokenizer, arrival_time)
        self.scheduler.add(sequence)

    def step(self) -> list[RequestOutput]:
        """Run the model once; report on every request that got a token.

        If the model raises, no request has changed: the next step tries the same again.
        """
        if self.is_finished():
            return []
        batch = self.scheduler.schedule()
        start = time.perf_counter()
        for item in batch.items:
            self._requests[item.sequence.request_id].mark_scheduled(start)
        token_ids = self.model_runner.execute(batch)
        self.scheduler.update(batch, token_ids)
        return [self._report(sequence) for sequence in batch.sampling_sequences]

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and return its last output; None if it has ended (or never was)."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        self.scheduler.finish(request.sequence, "abort")
        request.finish_text()
        return self._output(request)

    def is_finished(self) -> bool:
        """Whether every request has ended."""
        return not self._requests

    def has_unfinished_requests(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self._requests)

    def _encode(self, prompt: str | SequenceOf[int]) -> list[int]:
        """The token ids of `prompt`, which are at least one and in the vocabulary."""
        if not isinstance(prompt, str):
            try:
                token_ids = [operator.index(token_id) for token_id in prompt]
            except TypeError:
                raise RequestError(
                    f"a prompt is a text or a list of token ids (int), not {prompt!r:.60}"
                ) from None
        elif self.tokenizer is None:
            raise RequestError("there is no tokenizer: give the prompt as a list of token ids")
        else:
            token_ids = list(self.tokenizer.encode(prompt))
        if not token_ids:
            raise RequestError("the prompt is empty: it must have at least one token")
        self._check_in_vocabulary("the prompt", token_ids)
        return token_ids

    def _check_in_vocabulary(self, where: str, token_ids: SequenceOf[int]) -> None:
        wrong = sorted({i for i in token_ids if not 0 <= i < self.vocab_size})
        if wrong:
            listed = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
            raise RequestError(
                f"{where} has token ids that the model does not know: {listed}. "
                f"They must be 0 to {self.vocab_size - 1}."
            )

    def _max_length(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """Length at which model and cache are full; refuses a request that asks for more.

        Only who names `max_tokens` asks for that many: the default is cut to what fits.
        """
        pool = self.scheduler.page_pool
        limit, what = self.max_model_len, "the model's length (max_model_len)"
        remedy = "raise max_model_len if the model allows it"
        if pool.capacity < limit:
            limit, what = pool.capacity, f"the KV cache ({pool.num_pages} pages)"
            remedy = "raise kv_cache_memory_bytes"
        room = limit - num_prompt_tokens
        if room < 1:
            raise RequestError(
                f"the prompt has {num_prompt_tokens} tokens; {what} is {limit} tokens, and one is "
                f"needed for output. Shorten the prompt or {remedy}."
            )
        asked = params.max_tokens if "max_tokens" in params.model_fields_set else None
        if asked is not None and asked > room:
            raise RequestError(
                f"the prompt has {num_prompt_tokens} tokens and max_tokens is {asked}; "
                f"{what} is {limit} tokens. Set max_tokens to {room} or less (None: as many as "
                f"fit), shorten the prompt or {remedy}."
            )
        return limit

    def _report(self, sequence: Sequence) -> RequestOutput:
        """Decode the newest token of `sequence`, end it at a stop string, and say how it stands."""
        request = self._requests[sequence.request_id]
        if sequence.finish_reason in (None, "length") and request.add_text(sequence.token_ids[-1]):
            if sequence.is_finished:
                sequence.finish_reason = "stop"  # the last token allowed completed a stop string
            else:
                self.scheduler.finish(sequence, "stop")
        elif sequence.is_finished:
            if request.finish_text() and sequence.finish_reason == "length":
                sequence.finish_reason = "stop"
            if sequence.finish_reason == "abort":
                request.error = _not_numbers(sequence)
        return self._output(request)

    def _output(self, request: Request) -> RequestOutput:
        """The output of `request`, which is forgotten if it has ended."""
        if request.sequence.is_finished:
            del self._requests[request.sequence.request_id]
        return request.output(time.perf_counter())


def _not_numbers(sequence: Sequence) -> RequestError:
    """Why no token could be sampled for `sequence`."""
    return RequestError(
        f"request {sequence.request_id!r}: the model's logits after {len(sequence)} tokens are not "
        f"numbers (NaN or infinite), so no token can be sampled. Its weights are damaged, or a "
        f"16-bit dtype overflows: try dtype=float32."
    )
