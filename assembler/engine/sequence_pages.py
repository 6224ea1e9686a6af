"""The pages of sequences: how many they need, which they find in the cache and leave to it.

A page is known by its tokens as soon as it is scheduled to be full, so that those who start in the
same step share it too: every layer stores the keys and values of all tokens of a step before any of
them attends.
"""

from __future__ import annotations

from assembler.engine.page_pool import PagePool
from assembler.engine.sequence import Sequence


class SequencePages:
    """Moves pages between a pool and sequences."""

    def __init__(self, page_pool: PagePool) -> None:
        self._pool = page_pool

    def take(self, sequence: Sequence, count: int) -> None:
        """Give `sequence` pages for its next `count` tokens, which are going to be computed."""
        sequence.pages += self._pool.allocate(self.missing(sequence, count))
        start = sequence.num_computed_tokens
        self.make_known(sequence, start, start + count)

    def cached(self, sequence: Sequence) -> list[int]:
        """The pages that hold the beginning of a waiting sequence.

        Its last token has to run, as the next one is sampled after it, and so have all tokens of a
        prompt whose logits are wanted.
        """
        if sequence.needs_prompt_logits:
            return []
        page_size = self._pool.page_size
        keys = sequence.keys_of_pages((len(sequence) - 1) // page_size, page_size)
        return self._pool.known.longest_prefix(keys)

    def missing(self, sequence: Sequence, count: int) -> int:
        """Pages to add before `count` more tokens of `sequence` can be stored."""
        end = sequence.num_computed_tokens + count
        return max(0, self._pool.pages_for(end) - len(sequence.pages))

    def make_known(self, sequence: Sequence, start: int, end: int) -> None:
        """Let others share the pages that are full when the tokens `start` to `end` are computed.

        They are known by their tokens: by an unread one when it has been read.
        """
        page_size = self._pool.page_size
        first, last = start // page_size, min(end, len(sequence)) // page_size
        if first < last:
            keys = sequence.keys_of_pages(last, page_size)
            for key, page in zip(keys[first:], sequence.pages[first:last], strict=bool(keys)):
                self._pool.known.add(key, page)

    def release(self, sequence: Sequence) -> None:
        """Take all pages of `sequence`, which has nothing computed any more."""
        self._pool.free(sequence.pages)
        sequence.pages = []
        sequence.num_computed_tokens = 0
