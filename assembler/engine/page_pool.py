"""Who owns which page of KV memory. Pure bookkeeping: the memory itself is the model runner's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from assembler.engine.sequence import Sequence


class PagePool:
    """Hands out the pages of a cache of `num_pages` pages of `page_size` tokens."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        assert num_pages > 0 and page_size > 0, (num_pages, page_size)
        self.num_pages = num_pages
        self.page_size = page_size
        # A stack: the page freed last is used next, while it is still in the processor's caches.
        self._free = list(range(num_pages - 1, -1, -1))
        self._is_free = [True] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Tokens that all the pages hold together."""
        return self.num_pages * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that `num_tokens` tokens of one sequence take."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages; the caller has seen that there are as many."""
        assert 0 <= count <= self.num_free, f"{count} pages wanted, {self.num_free} free"
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_free[page] = False
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give `pages` back."""
        for page in pages:
            assert not self._is_free[page], f"page {page} is not taken"
            self._is_free[page] = True
            self._free.append(page)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that `sequences` own exactly the pages that are taken, each page once.

        Args:
            sequences: every sequence that may own pages.

        Raises:
            AssertionError: a page is leaked, shared, owned while free, or a sequence has fewer
                pages than its computed tokens need.
        """
        owners: Counter[int] = Counter()
        for sequence in sequences:
            owners.update(sequence.pages)
            needed = self.pages_for(sequence.num_computed_tokens)
            assert len(sequence.pages) >= needed, f"{sequence} needs {needed} pages"
        shared = sorted(page for page, count in owners.items() if count > 1)
        assert not shared, f"pages {shared} have several owners"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert not free & owners.keys(), f"pages {sorted(free & owners.keys())} are owned and free"
        leaked = set(range(self.num_pages)) - free - owners.keys()
        assert not leaked, f"pages {sorted(leaked)} are leaked: neither free nor owned"
