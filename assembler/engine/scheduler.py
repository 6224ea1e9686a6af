"""Continuous batching: which tokens of which sequences run in the next step.

Every step mixes decodes (one token a sequence) and prefills (as much of a prompt as the token
budget leaves: chunked prefill, Agrawal et al., 2023) in one batch. Pages are allocated when tokens
need them; when they run out, the newest running sequence gives up its pages and is computed again
later (preemption by recompute, Kwon et al., 2023). First come, first served throughout: `running`
followed by `waiting` is always the order of arrival.

A sequence starts behind the full pages that hold its beginning already (prefix caching), also those
that this very step is to fill. They hold it only if the step runs; if it fails, `restart` computes
everything anew.

A step may be scheduled while one is in flight whose tokens nobody has read (`overlap`): a sequence
then runs its unread token, unless that is the last one allowed.

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
from assembler.engine.sequence_pages import SequencePages
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
        self._pages = SequencePages(page_pool)
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

        Only pages and queues change. `launched` follows when the step runs, else `restart`.
        """
        items: list[ScheduledSequence] = []
        self._schedule_waiting(items, self._schedule_running(items))
        return ScheduledBatch(items)

    def launched(self, batch: ScheduledBatch) -> None:
        """Record that a step runs: the next may be scheduled, and `update` brings the tokens."""
        for item in batch.items:
            sequence = item.sequence
            sequence.num_computed_tokens = item.start + item.num_new_tokens
            sequence.num_unread_tokens += item.samples
            if sequence.num_computed_tokens >= sequence.num_prompt_tokens:
                sequence.needs_prompt_logits = False

    def update(self, batch: ScheduledBatch, token_ids: SequenceOf[int | None]) -> list[Sequence]:
        """Record the tokens of a step; the sequences that got one, or ended without one.

        Args:
            token_ids: a new token for each of `batch.sampling_sequences`; None ends a sequence for
                which none could be sampled (or computes it anew, see `_fail`).
        """
        advanced = []
        for sequence, token_id in zip(batch.sampling_sequences, token_ids, strict=True):
            if sequence.is_finished:
                continue  # at the token before, or aborted
            sequence.num_unread_tokens -= 1
            if sequence.discards_unread:
                sequence.discards_unread = sequence.num_unread_tokens > 0
                continue
            if token_id is None:
                self._fail(sequence)
                if not sequence.is_finished:
                    continue
            elif (reason := sequence.append(token_id)) is not None:
                self.finish(sequence, reason)
            else:
                self._pages.make_known(sequence, len(sequence) - 1, sequence.num_computed_tokens)
            advanced.append(sequence)
        return advanced

    def restart(self) -> None:
        """Compute all running sequences anew: a step failed, and what pages hold is unknown.

        No step is in flight any more: tokens that were not read are sampled again.
        """
        while self.running:
            self._preempt(self.running[-1])
        self.page_pool.forget_all()
        for sequence in self.waiting:
            sequence.num_unread_tokens, sequence.discards_unread = 0, False

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a waiting or running sequence and free its pages."""
        assert not sequence.is_finished, sequence
        runs = sequence.status is SequenceStatus.RUNNING
        (self.running if runs else self.waiting).remove(sequence)
        self._pages.release(sequence)
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
        runs = sequence.status is SequenceStatus.RUNNING
        if runs:
            self.page_pool.forget(sequence.pages)
        else:
            self.page_pool.forget_all()  # preempted meanwhile: its pages may be anywhere
        if sequence.num_reused_tokens == 0:
            self.finish(sequence, "abort")
            return
        sequence.share_no_pages()
        sequence.discards_unread = sequence.num_unread_tokens > 0
        if runs:
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
                continue  # older prompts are scored in this step, or it ends with an unread token
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
        owed = sum(self._pages.missing(s, s.num_uncomputed_tokens) for s in scored)
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if sequence.num_unread_tokens:
                break  # preempted while a step was in flight
            cached = self._pages.cached(sequence)
            missing = pool.pages_for(len(sequence)) - len(cached)
            num_uncomputed = len(sequence) - len(cached) * pool.page_size
            room = room_for(sequence, items, budget, self.chunked_prefill)
            fits = num_uncomputed <= room or (room and self.chunked_prefill)
            if not fits or missing + owed > pool.num_free - pool.num_idle(cached):
                break
            self._start(sequence, cached)
            count = min(num_uncomputed, room)
            items.append(self._take(sequence, count))
            owed += self._pages.missing(sequence, num_uncomputed)
            budget -= count

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
        while self._pages.missing(sequence, count) > self.page_pool.num_free:
            newest = self.running[-1]
            assert len(self.running) > 1, f"the cache cannot hold {newest} alone"
            self._preempt(newest)
            if newest is sequence:
                return False
        return True

    def _take(self, sequence: Sequence, count: int) -> ScheduledSequence:
        """Schedule the next `count` tokens of `sequence`, with pages for them."""
        self._pages.take(sequence, count)
        samples = count == sequence.num_uncomputed_tokens
        return ScheduledSequence(sequence, sequence.num_computed_tokens, count, samples)

    def _preempt(self, sequence: Sequence) -> None:
        """Take the pages of the newest running sequence; it is next to run again."""
        assert self.running[-1] is sequence
        self.running.pop()
        self._requeue(sequence)
        self.num_preemptions += 1

    def _requeue(self, sequence: Sequence) -> None:
        """Make a sequence that runs no more the next one to start."""
        self._pages.release(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.appendleft(sequence)
