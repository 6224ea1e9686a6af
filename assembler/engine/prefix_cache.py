"""Which full page holds which tokens, so that equal beginnings of sequences are computed once.

A full page is known by a key: a hash of its tokens and of the key of the page before it, hence of
everything its keys and values depend on (prefix caching by a chain of hashes, as in vLLM; Kwon et
al., 2023). The first key of a chain starts from a salt: what is computed under different salts is
never shared. How tokens are *sampled* changes no page, so any sampling parameters may share.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from hashlib import blake2b

_KEY_BYTES = 16  # two different prefixes meet in one key with a probability of about 2 ** -64


class PageKeys:
    """The keys of the full pages of one growing sequence, each worked out once."""

    def __init__(self, salt: bytes = b"") -> None:
        self._salt = salt
        self._keys: list[bytes] = []

    def first(self, count: int, token_ids: SequenceOf[int], page_size: int) -> list[bytes]:
        """The keys of the first `count` pages of `token_ids`, which has that many full ones.

        The tokens of pages that were asked for before must not have changed.
        """
        for number in range(len(self._keys), count):
            before = self._keys[-1] if number else self._salt
            tokens = array("q", token_ids[number * page_size : (number + 1) * page_size])
            assert len(tokens) == page_size, f"page {number} is not full"
            digest = blake2b(before, digest_size=_KEY_BYTES)
            digest.update(tokens.tobytes())
            self._keys.append(digest.digest())
        return self._keys[:count]


class PrefixCache:
    """The pages that are known by a key; one page for a key, one key for a page."""

    def __init__(self) -> None:
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._page_of)

    def longest_prefix(self, keys: Iterable[bytes]) -> list[int]:
        """The pages of the first of `keys`, up to one that no page is known by."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def key_of(self, page: int) -> bytes | None:
        """The key `page` is known by."""
        return self._key_of.get(page)

    def add(self, key: bytes, page: int) -> None:
        """Make `page` known by `key`, unless either is taken: an equal page will do as well."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def drop(self, page: int) -> None:
        """Forget what `page` holds."""
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]

    def check_integrity(self) -> None:
        """Assert that keys and pages belong to each other one by one."""
        assert {page: key for key, page in self._page_of.items()} == self._key_of
