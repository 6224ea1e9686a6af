"""One sequence of tokens in flight: what the scheduler, the runner and the sampler work on."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from enum import Enum, auto

from assembler.engine.outputs import FinishReason
from assembler.engine.prefix_cache import PageKeys
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sampling_state import SamplingState


class SequenceStatus(Enum):
    """Where a sequence stands."""

    WAITING = auto()  # holds no pages
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """The tokens of a prompt and of its continuation, and the pages that cache them.

    The keys and values of `token_ids[:num_computed_tokens]` are in `pages`, in order; the tokens
    after them are still to be run (the rest of the prompt, the token sampled last, or everything
    after a preemption). The sequence samples a new token in the step that runs its last one.

    A request for several samples has as many sequences, which share the pages of the prompt.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        max_length: int,
        eos_token_ids: Collection[int] = (),
        eos_token_id: int | None = None,
        bad_words: SequenceOf[SequenceOf[int]] = (),
        index: int = 0,
        page_salt: bytes | None = None,
    ) -> None:
        """A waiting sequence, of the prompt only.

        Args:
            max_length: tokens of prompt and output together at which the sequence ends.
            eos_token_ids: tokens that end it unless `params.ignore_eos`.
            eos_token_id: the one of them that is no `stop_reason`.
            bad_words: the token ids of `params.bad_words`.
            index: which of the request's samples it is.
            page_salt: sequences of one salt that begin alike share pages; None: it shares none.
        """
        self.request_id = request_id
        self.index = index
        self.params = params
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.pages: list[int] = []  # filled by the scheduler; it grows, or is another list
        self.num_computed_tokens = 0  # advanced by the scheduler
        self.num_unread_tokens = 0  # sampled after `token_ids`, and not yet known to the host
        self.discards_unread = False  # they came of a pass that counts no more
        self.num_cached_tokens: int | None = None  # found in the cache when it was first started
        self.num_reused_tokens = 0  # found there when it was started last
        # Whether the logits after each token of the prompt are wanted (of one sample only); ends
        # when they have been computed.
        self.needs_prompt_logits = params.prompt_logprobs is not None and index == 0
        self.status = SequenceStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | None = None  # the token that ended it, if not the usual one
        self.sampling = SamplingState(
            params,
            prompt_token_ids,
            index=index,
            end_token_ids={*params.stop_token_ids, *eos_token_ids},
            bad_words=bad_words,
        )
        self._page_keys = None if page_salt is None else PageKeys(page_salt)
        self._eos_token_id = None if params.ignore_eos else eos_token_id
        ends = () if params.ignore_eos else eos_token_ids
        self._stop_token_ids = frozenset((*ends, *params.stop_token_ids))
        if params.max_tokens is not None:
            max_length = min(max_length, self.num_prompt_tokens + params.max_tokens)
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id!r}, {self.status.name}, {len(self)} tokens, "
            f"{self.num_computed_tokens} computed, pages={self.pages})"
        )

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def generated_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """How many tokens can be run now, unread ones too; the last one allowed never is."""
        known = min(len(self.token_ids) + self.num_unread_tokens, self._max_length - 1)
        return known - self.num_computed_tokens

    @property
    def is_finished(self) -> bool:
        return self.status is SequenceStatus.FINISHED

    def share_no_pages(self) -> None:
        """Neither find pages nor let others find its own from now on."""
        self._page_keys = None

    def keys_of_pages(self, count: int, page_size: int) -> list[bytes]:
        """What the first `count` (full) pages are known by; [] if the sequence shares none."""
        if self._page_keys is None:
            return []
        return self._page_keys.first(count, self.token_ids, page_size)

    def append(self, token_id: int) -> FinishReason | None:
        """Add a sampled token; return why the sequence ends with it, or None if it goes on."""
        self.token_ids.append(token_id)
        if token_id in self._stop_token_ids:
            self.stop_reason = None if token_id == self._eos_token_id else token_id
            return "stop"
        if len(self.token_ids) >= self._max_length:
            return "length"
        return None
