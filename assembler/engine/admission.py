"""What of a request is refused, and the sequences that the rest of it becomes."""

from __future__ import annotations

import operator
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from typing import Protocol

from assembler.engine.options import MAX_LOGPROBS
from assembler.engine.page_pool import PagePool
from assembler.engine.param_checks import check_params, unknown_token_ids
from assembler.engine.request import DetokenizerLike
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence
from assembler.errors import RequestError


class TokenizerLike(Protocol):
    """What the engine asks of a tokenizer."""

    eos_token_ids: Collection[int]

    @property
    def eos_token_id(self) -> int | None:
        """The one that ends a text without being named as the reason."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: SequenceOf[int], skip_special_tokens: bool = True) -> str: ...

    def detokenizer(self, skip_special_tokens: bool = True) -> DetokenizerLike: ...


class Admission:
    """Holds requests against the model and the memory."""

    def __init__(
        self,
        tokenizer: TokenizerLike | None,
        page_pool: PagePool,
        *,
        vocab_size: int,
        max_model_len: int,
        prefix_caching: bool,
        length_border: int | None,
        max_logprobs: int = MAX_LOGPROBS,
    ) -> None:
        """What requests are held against.

        Args:
            prefix_caching: requests that begin alike share the pages of their beginning. (The
                samples of one request always do.)
            length_border: what is cached of a token depends on the length of its prompt if that is
                longer than this; None: it never does.
            max_logprobs: see `check_params`.
        """
        self.prefix_caching = prefix_caching
        self.length_border = length_border
        self._tokenizer = tokenizer
        self._page_pool = page_pool
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._max_logprobs = max_logprobs
        self._num_salted = 0
        # A tokenizer may have more tokens than the model, which never come up.
        known = tokenizer.eos_token_ids if tokenizer else ()
        self._eos_token_ids = frozenset(i for i in known if 0 <= i < vocab_size)
        self._eos_token_id = tokenizer.eos_token_id if tokenizer else None

    def sequences(
        self, request_id: str, prompt: str | SequenceOf[int], params: SamplingParams
    ) -> list[Sequence]:
        """A new sequence for each sample of a request.

        Raises:
            RequestError: it cannot be served; the message says why and what to do.
        """
        token_ids = self._encode(prompt)
        bad_words = check_params(params, self._vocab_size, self._tokenizer, self._max_logprobs)
        max_length = self._max_length(len(token_ids), params)
        page_salt = self._page_salt(len(token_ids), params)
        return [
            Sequence(
                request_id,
                token_ids,
                params,
                max_length=max_length,
                eos_token_ids=self._eos_token_ids,
                eos_token_id=self._eos_token_id,
                bad_words=bad_words,
                index=index,
                page_salt=page_salt,
            )
            for index in range(params.n)
        ]

    def _encode(self, prompt: str | SequenceOf[int]) -> list[int]:
        """The token ids of `prompt`, which are at least one and in the vocabulary."""
        if not isinstance(prompt, str):
            try:
                token_ids = [operator.index(token_id) for token_id in prompt]
            except TypeError:
                raise RequestError(
                    f"a prompt is a text or a list of token ids (int), not {prompt!r:.60}"
                ) from None
        elif self._tokenizer is None:
            raise RequestError("there is no tokenizer: give the prompt as a list of token ids")
        else:
            token_ids = list(self._tokenizer.encode(prompt))
        if not token_ids:
            raise RequestError("the prompt is empty: it must have at least one token")
        if wrong := unknown_token_ids("the prompt", token_ids, self._vocab_size):
            raise RequestError(wrong)
        return token_ids

    def _max_length(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """Length at which model and cache are full; refuses a request that asks for more.

        Only who names `max_tokens` asks for that many: the default is cut to what fits.
        """
        pool = self._page_pool
        limit, what = self._max_model_len, "the model's length (max_model_len)"
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

    def _page_salt(self, num_prompt_tokens: int, params: SamplingParams) -> bytes | None:
        """Under what the pages of a new request are shared, and with whom."""
        if self.prefix_caching:
            salt = "any request"
        elif params.n > 1:
            self._num_salted += 1
            salt = f"request {self._num_salted}"
        else:
            return None
        if self.length_border is not None and num_prompt_tokens > self.length_border:
            salt += f", {num_prompt_tokens} tokens"
        return salt.encode()
