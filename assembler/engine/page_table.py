"""The pages of the running sequences as rows of one array, to which only new pages are written.

A sequence keeps its row while it runs, whatever place it has in a step; turning every list of pages
into numbers in every step would take longer than all else that the host does.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np


class PageTable:
    """Knows lists of pages by their identity: such a list only ever grows.

    (A sequence that gives its pages up gets a new list: `Sequence.pages`.)
    """

    def __init__(self) -> None:
        self._keep(np.zeros((0, 0), dtype=np.int32))
        self._lists: list[list[int]] = []  # what each row holds, or held
        self._known: list[int] = []  # how many pages of it
        self._row_of: dict[int, int] = {}  # by the identity of the list
        self._rows: list[int] = []  # of the newest step
        self._width = 0

    def update(self, lists: SequenceOf[list[int]]) -> bool:
        """Take up the pages of a step's sequences; whether `rows` are others than before."""
        keys = [id(pages) for pages in lists]
        if not self._row_of.keys() >= set(keys):
            self._assign(lists)
        rows = [self._row_of[key] for key in keys]
        lengths = [len(pages) for pages in lists]
        known = self._known
        grown = [i for i, row in enumerate(rows) if known[row] != lengths[i]]
        for i in grown:
            self._write(rows[i], lists[i])
        same = not grown and rows == self._rows
        self._rows, self._width = rows, max(lengths)
        return not same

    def _keep(self, numbers: np.ndarray) -> None:
        self._numbers = numbers  # [rows, pages], 0 behind the known ones
        self._address = numbers.ctypes.data

    @property
    def numbers(self) -> list[int]:
        """Which row of all that are kept holds each list of the step."""
        return self._rows

    @property
    def address(self) -> int:
        """Where the kept rows, int32, begin; until the next `update`."""
        return self._address

    @property
    def width(self) -> int:
        """The numbers from one kept row to the next."""
        return self._numbers.shape[1]

    def rows(self) -> np.ndarray:
        """[S, W] int32, a copy: the pages of the step, padded with 0 up to the longest list."""
        return self._numbers[self._rows, : self._width]

    def _assign(self, lists: SequenceOf[list[int]]) -> None:
        """Give each list a row; lists that are not in this step lose theirs."""
        wanted = {id(pages): pages for pages in lists}
        kept = {key: row for key, row in self._row_of.items() if key in wanted}
        if len(wanted) > len(self._lists):
            more = max(len(wanted), 2 * len(self._lists)) - len(self._lists)
            self._keep(np.pad(self._numbers, ((0, more), (0, 0))))
            self._lists += [[] for _ in range(more)]
            self._known += [0] * more
        free = iter(sorted(set(range(len(self._lists))).difference(kept.values())))
        for key, pages in wanted.items():
            if key not in kept:
                row = kept[key] = next(free)
                self._lists[row], self._known[row] = pages, 0
        self._row_of = kept  # no other list has one of these identities while they are kept here
        self._rows = []  # a row may hold another list than it did

    def _write(self, row: int, pages: list[int]) -> None:
        """Bring a row up to date."""
        size, capacity = len(pages), self._numbers.shape[1]
        if size > capacity:
            more = max(size, 2 * capacity) - capacity
            self._keep(np.pad(self._numbers, ((0, 0), (0, more))))
        start = self._known[row] if self._known[row] < size else 0
        if start == 0:
            self._numbers[row, size:] = 0
        self._numbers[row, start:size] = pages[start:]
        self._known[row] = size
