import pytest

from assembler.engine.page_pool import PagePool
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence


def sequence_with(pages, computed):
    sequence = Sequence("r", list(range(100)), SamplingParams(), max_length=200)
    sequence.pages = pages
    sequence.num_computed_tokens = computed
    return sequence


def test_every_page_is_handed_out_once_and_comes_back():
    pool = PagePool(6, page_size=4)
    first = pool.allocate(2)
    rest = pool.allocate(4)
    assert sorted(first + rest) == list(range(6))
    assert pool.num_free == 0
    pool.free(first)
    assert pool.num_free == 2
    assert sorted(pool.allocate(2)) == sorted(first)


def test_pages_for_rounds_up():
    pool = PagePool(3, page_size=4)
    assert [pool.pages_for(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert pool.capacity == 12


def test_misuse_is_an_assertion():
    pool = PagePool(3, page_size=4)
    with pytest.raises(AssertionError, match="4 pages wanted, 3 free"):
        pool.allocate(4)
    pages = pool.allocate(1)
    pool.free(pages)
    with pytest.raises(AssertionError, match="not taken"):
        pool.free(pages)


def test_integrity_holds_for_owners_of_distinct_pages():
    pool = PagePool(6, page_size=4)
    pool.check_integrity([])
    pool.check_integrity([sequence_with(pool.allocate(2), 8), sequence_with(pool.allocate(1), 1)])


def test_integrity_finds_leaks_sharing_and_missing_pages():
    pool = PagePool(6, page_size=4)
    pages = pool.allocate(2)
    with pytest.raises(AssertionError, match="leaked"):
        pool.check_integrity([sequence_with(pages[:1], 4)])
    with pytest.raises(AssertionError, match="several owners"):
        pool.check_integrity([sequence_with(pages, 8), sequence_with(pages[:1], 4)])
    with pytest.raises(AssertionError, match="needs 3 pages"):
        pool.check_integrity([sequence_with(pages, 9)])
    pool.free(pages[:1])
    with pytest.raises(AssertionError, match="owned and free"):
        pool.check_integrity([sequence_with(pages, 8)])
