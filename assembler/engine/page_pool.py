"""Who uses which page of KV memory. Pure bookkeeping: the memory itself is the model runner's.

A page is *used* by one sequence or by several with the same beginning, or it is free. A free page
is *blank*, or still *known* by the tokens it holds (`PrefixCache`): then a sequence that begins
alike may take it up again, until its memory is needed for something else.

    blank ──allocate──> used ──free──> known? ──yes──> idle ──share──> used
      ^                                  └──no──> blank   └──allocate (evict)──> used
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from assembler.engine.prefix_cache import PrefixCache
from assembler.engine.sequence import Sequence


class PagePool:
    """Hands out the pages of a cache of `num_pages` pages of `page_size` tokens."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        assert num_pages > 0 and page_size > 0, (num_pages, page_size)
        self.num_pages = num_pages
        self.page_size = page_size
        self.known = PrefixCache()
        self._users = [0] * num_pages  # how many sequences use each page
        # A stack: the page freed last is used next, while it is still in the processor's caches.
        self._blank = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and unused; next to go first

    @property
    def num_free(self) -> int:
        """Pages that nobody uses."""
        return len(self._blank) + len(self._idle)

    @property
    def capacity(self) -> int:
        """Tokens that all the pages hold together."""
        return self.num_pages * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that `num_tokens` tokens of one sequence take."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages, blank ones first, then those unused for the longest time.

        The caller has seen that there are as many.
        """
        assert 0 <= count <= self.num_free, f"{count} pages wanted, {self.num_free} free"
        pages = []
        for _ in range(count):
            if self._blank:
                page = self._blank.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                self.known.drop(page)
            self._users[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Use known `pages` as well."""
        for page in pages:
            assert self.known.key_of(page) is not None, f"page {page} is not known"
            if self._users[page] == 0:
                del self._idle[page]
            self._users[page] += 1

    def free(self, pages: SequenceOf[int]) -> None:
        """End one use of each of `pages`, a sequence's pages in order.

        The last of them becomes idle first, so it is evicted first: without the pages before it a
        page cannot be found.
        """
        for page in reversed(pages):
            assert self._users[page] > 0, f"page {page} is not taken"
            self._users[page] -= 1
            if self._users[page] == 0:
                self._set_free(page)

    def num_idle(self, pages: Iterable[int]) -> int:
        """How many of these known pages nobody uses."""
        return sum(self._users[page] == 0 for page in pages)

    def forget(self, pages: Iterable[int]) -> None:
        """Let nobody else share what `pages` hold."""
        for page in pages:
            self.known.drop(page)
            if page in self._idle:
                del self._idle[page]
                self._blank.append(page)

    def forget_all(self) -> None:
        """Let nobody share what any page holds now."""
        self.forget(range(self.num_pages))

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that `sequences` use exactly the pages that are taken, and share only known ones.

        Args:
            sequences: every sequence that may use pages.

        Raises:
            AssertionError: a page is leaked, free and used, shared by sequences that do not begin
                alike, or a sequence has fewer pages than its computed tokens need.
        """
        users: Counter[int] = Counter()
        contents: dict[int, list[int]] = {}
        for sequence in sequences:
            users.update(sequence.pages)
            needed = self.pages_for(sequence.num_computed_tokens)
            assert len(sequence.pages) >= needed, f"{sequence} needs {needed} pages"
            self._check_keys(sequence)
            for number, page in enumerate(sequence.pages):
                begins = sequence.token_ids[: (number + 1) * self.page_size]
                assert contents.setdefault(page, begins) == begins, f"page {page} is shared wrongly"
        free = {*self._blank, *self._idle}
        assert len(free) == self.num_free, "a page is free twice"
        assert not free & users.keys(), f"pages {sorted(free & users.keys())} are owned and free"
        leaked = set(range(self.num_pages)) - free - users.keys()
        assert not leaked, f"pages {sorted(leaked)} are leaked: neither free nor owned"
        wrong = [page for page, count in enumerate(self._users) if count != users[page]]
        assert not wrong, f"pages {wrong} have several owners or none, unlike what was counted"
        assert all(self.known.key_of(page) is not None for page in self._idle)
        assert all(self.known.key_of(page) is None for page in self._blank)
        self.known.check_integrity()

    def _set_free(self, page: int) -> None:
        if self.known.key_of(page) is None:
            self._blank.append(page)
        else:
            self._idle[page] = None

    def _check_keys(self, sequence: Sequence) -> None:
        """Assert that the pages of `sequence` are known by its tokens, if they are known."""
        known = [self.known.key_of(page) for page in sequence.pages]
        full = len(sequence) // self.page_size
        assert not any(known[full:]), f"a page of {sequence} is known before it is full"
        keys = sequence.keys_of_pages(min(full, len(known)), self.page_size)
        for page, key, own in zip(sequence.pages, known, keys, strict=False):
            assert key in (None, own), f"page {page} of {sequence} holds other tokens"
