import pytest
from engine_fakes import MemoryModel, make_engine, run

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


def test_without_prefix_caching_a_page_that_was_used_is_used_again():
    """The newest first: it is in the processor's caches, and pages never touched take no memory."""
    pool = PagePool(100, page_size=4)
    first = pool.allocate(3)
    pool.free(first)
    assert pool.allocate(2) == first[:2]
    pool.free(first[:2])
    assert pool.allocate(3) == first


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_an_engine_touches_no_more_pages_than_it_needs(prefix_caching):
    engine = make_engine(MemoryModel(), num_pages=100, prefix_caching=prefix_caching)
    touched = set()
    for number in range(10):
        params = SamplingParams(temperature=0, max_tokens=1)
        engine.add_request(str(number), [number + 1] * 12, params)
        run(engine)
        (keys, _), *_ = engine.model_runner.kv_caches
        touched |= set(keys.flatten(1).isfinite().any(dim=1).nonzero().flatten().tolist())
    assert len(touched) == (30 if prefix_caching else 3)  # known ones are kept for who comes again
