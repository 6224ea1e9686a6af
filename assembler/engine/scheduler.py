"""Continuous batching: which tokens of which sequences run in the next step.

Every step mixes decodes (one token a sequence) and prefills (as much of a prompt as the token
budget leaves: chunked prefill, Agrawal et al., 2023) in one batch. Pages are allocated when tokens
need them; when they run out, the newest running sequence gives up its pages and is computed again
later (preemption by recompute, Kwon et al., 2023). First come, first served throughout: `running`
followed by `waiting` is always the order of arrival.

A sequence starts behind the full pages that hold its beginning already (prefix caching). A page is
known by its tokens as soon as it is scheduled to be full, so that those who start in the same step
share it too: every layer stores the keys and values of all tokens of a step before any of them
attends. That holds only if the step runs; if it fails, `restart` computes everything anew.

    add ──> waiting ──schedule──> running ──finish──> (gone)
               ^──────preempt────────┘
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf

from assembler.engine.outputs import FinishReason
from assembler.engine.page_pool import PagePool
from assembler.engine.scheduled_batch import ScheduledBatch, ScheduledSequence, room_for
from assembler.engine.sequence import Sequence, SequenceStatus
from assembler.errors import OptionError


class Scheduler:
    """Chooses what runs in each step and keeps the pages of all sequences."""

    def __init__(
        self,
        page_pool: PagePool,
        *,
        max_num_batched_tokens: int = 2048,
        max_num_seqs: int = 256,
        chunked_prefill: bool = True,
    ) -> None:
        """A scheduler without sequences, of so many tokens a step and sequences at a time at most.

        Args:
            chunked_prefill: False: a sequence starts in a step that has room for all its tokens;
                no sequence may be longer than `max_num_batched_tokens`.

        Raises:
            OptionError: a step would not hold one token of every running sequence.
        """
        if not 0 < max_num_seqs <= max_num_batched_tokens:
            raise OptionError(
                f"max_num_batched_tokens={max_num_batched_tokens} must be at least "
                f"max_num_seqs={max_num_seqs} (and that at least 1), so that every running "
                f"sequence advances in every step. Raise the first or lower the second."
            )
        self.page_pool = page_pool
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.chunked_prefill = chunked_prefill
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_started_tokens = 0  # of all sequences that have started, again after preemptions
        self.num_cached_tokens = 0  # of these, found in the cache and not computed

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. The whole cache must be able to hold it at its full length."""
        self.waiting.append(sequence)

    def schedule(self) -> ScheduledBatch:
        """The next step: the running sequences, then as many waiting ones as fit.

        Only pages and queues change. `update` follows when the step has run, else `restart`.
        """
        items: list[ScheduledSequence] = []
        self._schedule_waiting(items, self._schedule_running(items))
        return ScheduledBatch(items)

    def update(self, batch: ScheduledBatch, token_ids: SequenceOf[int | None]) -> list[Sequence]:
        """Record a step that ran; the sequences that got a token, or ended without one.

        Args:
            token_ids: a new token for each of `batch.sampling_sequences`; None ends a sequence for
                which none could be sampled (or computes it anew, see `_fail`).
        """
        for item in batch.items:
            sequence = item.sequence
            sequence.num_computed_tokens = item.start + item.num_new_tokens
            if sequence.num_computed_tokens >= sequence.num_prompt_tokens:
                sequence.needs_prompt_logits = False
        advanced = []
        for sequence, token_id in zip(batch.sampling_sequences, token_ids, strict=True):
            if token_id is None:
                self._fail(sequence)
                if not sequence.is_finished:
                    continue
            elif (reason := sequence.append(token_id)) is not None:
                self.finish(sequence, reason)
            advanced.append(sequence)
        return advanced

    def restart(self) -> None:
        """Compute all running sequences anew: a step failed, and what pages hold is unknown."""
        while self.running:
            self._preempt(self.running[-1])
        self.page_pool.forget_all()

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a waiting or running sequence and free its pages."""
        assert not sequence.is_finished, sequence
        runs = sequence.status is SequenceStatus.RUNNING
        (self.running if runs else self.waiting).remove(sequence)
        self._release_pages(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def check_integrity(self) -> None:
        """Assert that queues, statuses and pages agree (see `PagePool.check_integrity`)."""
        assert all(s.status is SequenceStatus.RUNNING for s in self.running)
        assert all(s.status is SequenceStatus.WAITING and not s.pages for s in self.waiting)
        self.page_pool.check_integrity(self.running)

    def _fail(self, sequence: Sequence) -> None:
        """End a sequence without logits that are numbers, or compute it anew, by itself.

        Not-a-number spreads backwards: masked keys weigh 0, and 0 * NaN is NaN. So a page of
        harmless tokens that another sequence has computed may be the cause.
        """
        self.page_pool.forget(sequence.pages)
        if sequence.num_reused_tokens == 0:
            self.finish(sequence, "abort")
            return
        sequence.share_no_pages()
        self.running.remove(sequence)
        self._requeue(sequence)

    def _schedule_running(self, items: list[ScheduledSequence]) -> int:
        """Schedule the running sequences, oldest first; return the budget that is left."""
        budget = self.max_num_batched_tokens
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            index += 1
            room = room_for(sequence, items, budget, self.chunked_prefill)
            if not (count := min(sequence.num_uncomputed_tokens, room)):
                continue  # older prompts are scored in this step
            if not self._make_room(sequence, count):
                break  # it was the newest itself
            items.append(self._take(sequence, count))
            budget -= count
        return budget

    def _schedule_waiting(self, items: list[ScheduledSequence], budget: int) -> None:
        """Start waiting sequences, oldest first, while budget, seats and pages allow.

        Budget is left only if every running sequence has all its tokens in this step, but for
        prompts that are scored: pages are kept for them. A sequence starts once all its known
        tokens fit: started with less, it would soon be preempted and computed again. (So one that
        was preempted in this very step does not start again: an older one has its pages.)
        """
        pool = self.page_pool
        scored = (s for s in self.running if s.needs_prompt_logits)
        owed = sum(self._pages_missing(s, s.num_uncomputed_tokens) for s in scored)
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            cached = self._cached_pages(sequence)
            missing = pool.pages_for(len(sequence)) - len(cached)
            num_uncomputed = len(sequence) - len(cached) * pool.page_size
            room = room_for(sequence, items, budget, self.chunked_prefill)
            fits = num_uncomputed <= room or (room and self.chunked_prefill)
            if not fits or missing + owed > pool.num_free - pool.num_idle(cached):
                break
            self._start(sequence, cached)
            count = min(num_uncomputed, room)
            items.append(self._take(sequence, count))
            owed += self._pages_missing(sequence, num_uncomputed)
            budget -= count

    def _cached_pages(self, sequence: Sequence) -> list[int]:
        """The pages that hold the beginning of a waiting sequence.

        Its last token has to run, as the next one is sampled after it, and so have all tokens of a
        prompt whose logits are wanted.
        """
        if sequence.needs_prompt_logits:
            return []
        page_size = self.page_pool.page_size
        keys = sequence.keys_of_pages((len(sequence) - 1) // page_size, page_size)
        return self.page_pool.known.longest_prefix(keys)

    def _start(self, sequence: Sequence, cached: list[int]) -> None:
        """Make the first waiting sequence a running one, behind the pages that are there."""
        self.page_pool.share(cached)
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        sequence.pages = cached
        sequence.num_computed_tokens = len(cached) * self.page_pool.page_size
        sequence.num_reused_tokens = sequence.num_computed_tokens
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        self.num_started_tokens += len(sequence)
        self.num_cached_tokens += sequence.num_computed_tokens

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Preempt the newest until `count` more tokens fit; False if `sequence` went itself."""
        while self._pages_missing(sequence, count) > self.page_pool.num_free:
            newest = self.running[-1]
            assert len(self.running) > 1, f"the cache cannot hold {newest} alone"
            self._preempt(newest)
            if newest is sequence:
                return False
        return True

    def _take(self, sequence: Sequence, count: int) -> ScheduledSequence:
        """Schedule the next `count` tokens of `sequence`, with pages for them."""
        sequence.pages += self.page_pool.allocate(self._pages_missing(sequence, count))
        self._make_known(sequence, sequence.num_computed_tokens + count)
        samples = count == sequence.num_uncomputed_tokens
        return ScheduledSequence(sequence, sequence.num_computed_tokens, count, samples)

    def _make_known(self, sequence: Sequence, end: int) -> None:
        """Let others share the pages that are full once the tokens before `end` are computed."""
        page_size = self.page_pool.page_size
        first, last = sequence.num_computed_tokens // page_size, end // page_size
        if first < last:
            keys = sequence.keys_of_pages(last, page_size)
            for key, page in zip(keys[first:], sequence.pages[first:last], strict=bool(keys)):
                self.page_pool.known.add(key, page)

    def _pages_missing(self, sequence: Sequence, count: int) -> int:
        """Pages to add before `count` more tokens of `sequence` can be stored."""
        end = sequence.num_computed_tokens + count
        return max(0, self.page_pool.pages_for(end) - len(sequence.pages))

    def _preempt(self, sequence: Sequence) -> None:
        """Take the pages of the newest running sequence; it is next to run again."""
        assert self.running[-1] is sequence
        self.running.pop()
        self._requeue(sequence)
        self.num_preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        """Make a sequence that runs no more the next one to start."""
        self._release_pages(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)

    def _release_pages(self, sequence: Sequence) -> None:
        self.page_pool.free(sequence.pages)
        sequence.pages = []
        sequence.num_computed_tokens = 0
