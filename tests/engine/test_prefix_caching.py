"""Pages that hold a beginning are shared, and only those; no token depends on it."""

import pytest
from engine_fakes import (
    VOCAB,
    MemoryModel,
    ScriptedModel,
    greedy_reference,
    make_engine,
    run,
)

from assembler.engine.page_pool import PagePool
from assembler.engine.prefix_cache import PageKeys, PrefixCache
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence

PREFIX = list(range(1, 31))  # 7 pages of 4, and 2 tokens


def greedy(count, **params):
    return SamplingParams(temperature=0, max_tokens=count, **params)


def sampled(**params):
    return SamplingParams(**{"temperature": 1.0, "seed": 5, "max_tokens": 6, **params})


def engine_of(model=None, **options):
    return make_engine(model or MemoryModel(by_length=False), **options)


def generate(engine, **requests):
    """The outputs of name=(prompt, params), checked at every step."""
    for name, (prompt, params) in requests.items():
        engine.add_request(name, prompt, params)
    return run(engine)


def tokens(output):
    return output.outputs[0].token_ids


# keys ---------------------------------------------------------------------------------------------


def test_a_key_stands_for_everything_before_it():
    def keys(token_ids, salt=b""):
        return PageKeys(salt).first(len(token_ids) // 2, token_ids, 2)

    assert keys([1, 2, 3, 4]) == keys([1, 2, 3, 4, 5])
    assert keys([1, 2, 3, 4])[0] == keys([1, 2, 9, 9])[0]
    assert keys([1, 2, 3, 4])[1] != keys([1, 9, 3, 4])[1]
    assert keys([3, 4])[0] != keys([1, 2, 3, 4])[1]
    assert keys([1, 2], b"a") != keys([1, 2], b"b")
    growing = PageKeys()
    assert growing.first(1, [1, 2, 3], 2) + growing.first(2, [1, 2, 3, 4], 2)[1:] == keys(
        [1, 2, 3, 4]
    )


def test_one_page_for_a_key_and_one_key_for_a_page():
    cache = PrefixCache()
    cache.add(b"a", 1)
    cache.add(b"a", 2)
    cache.add(b"b", 1)
    assert cache.longest_prefix([b"a", b"b"]) == [1]
    assert (cache.key_of(1), cache.key_of(2), len(cache)) == (b"a", None, 1)
    cache.drop(1)
    cache.drop(1)
    assert cache.longest_prefix([b"a"]) == []
    cache.check_integrity()


# the pool -----------------------------------------------------------------------------------------


def pool_with(*keys):
    """A pool of that many pages, all known and idle; page 0 was freed first."""
    pool = PagePool(len(keys), page_size=4)
    pages = pool.allocate(len(keys))
    for page, key in zip(pages, keys, strict=True):
        pool.known.add(key, page)
        pool.free([page])
    return pool


def test_the_page_unused_for_longest_is_evicted_first():
    pool = pool_with(b"a", b"b", b"c")
    pool.share(pool.known.longest_prefix([b"a"]))
    pool.free([0])  # used again: b is the oldest now
    assert pool.allocate(1) == [1]
    assert pool.known.longest_prefix([b"b"]) == []
    assert pool.allocate(1) == [2]
    assert pool.known.longest_prefix([b"a"]) == [0]


def test_of_one_sequence_the_last_page_is_evicted_first():
    pool = PagePool(3, page_size=4)
    pages = pool.allocate(3)
    for page in pages:
        pool.known.add(bytes([page]), page)
    pool.free(pages)
    assert [pool.allocate(1) for _ in range(3)] == [[2], [1], [0]]


def test_blank_pages_are_taken_before_known_ones():
    pool = PagePool(3, page_size=4)
    pages = pool.allocate(3)
    pool.known.add(b"a", pages[1])
    pool.free(pages)
    assert sorted(pool.allocate(2)) == [0, 2]
    assert pool.num_free == pool.num_idle([1]) == 1


def test_a_page_is_free_when_its_last_user_is_gone():
    pool = pool_with(b"a")
    pool.share([0])
    pool.share([0])
    pool.free([0])
    assert pool.num_free == 0
    pool.free([0])
    assert pool.num_free == 1
    pool.forget_all()
    assert pool.known.longest_prefix([b"a"]) == [] and pool.num_free == 1
    with pytest.raises(AssertionError, match="not known"):
        pool.share([0])


def test_integrity_finds_pages_that_are_known_by_other_tokens():
    pool = PagePool(4, page_size=2)
    sequence = Sequence("a", [1, 2, 3, 4, 5], SamplingParams(), max_length=9, page_salt=b"")
    other = Sequence("b", [1, 2, 3, 5, 5], SamplingParams(), max_length=9, page_salt=b"")
    sequence.pages = pool.allocate(3)
    for key, page in zip(sequence.keys_of_pages(2, 2), sequence.pages, strict=False):
        pool.known.add(key, page)
    pool.share(sequence.pages[:1])
    other.pages = sequence.pages[:1]
    pool.check_integrity([sequence, other])
    pool.share(sequence.pages[1:2])
    other.pages = sequence.pages[:2]
    with pytest.raises(AssertionError, match="holds other tokens"):
        pool.check_integrity([sequence, other])


# the engine ---------------------------------------------------------------------------------------


def test_a_beginning_is_computed_once():
    engine = engine_of()
    first = generate(engine, a=(PREFIX, greedy(4)))["a"]
    engine.model_runner.model.steps.clear()
    prompt = [*PREFIX[:28], 60, 61]
    second = generate(engine, b=(prompt, greedy(4)))["b"]
    assert engine.model_runner.model.steps[0] == [2]
    assert tokens(first) == greedy_reference(PREFIX, 4, by_length=False)
    assert tokens(second) == greedy_reference(prompt, 4, by_length=False)
    assert (first.metrics.num_cached_tokens, second.metrics.num_cached_tokens) == (0, 28)
    assert engine.stats.num_cached_tokens == 28
    assert engine.stats.cache_hit_rate == pytest.approx(28 / 60)


def test_generated_tokens_are_a_beginning_too():
    """The next turn of a conversation goes on where the answer ended."""
    engine = engine_of()
    answer = tokens(generate(engine, a=(PREFIX, greedy(11)))["a"])
    turn = [*PREFIX, *answer, 50, 51]
    output = generate(engine, b=(turn, greedy(3)))["b"]
    assert output.metrics.num_cached_tokens == 40  # the last token of the answer was never run
    assert tokens(output) == greedy_reference(turn, 3, by_length=False)


def test_requests_of_one_step_share_too():
    engine = engine_of()
    prompts = {f"r{n}": [*PREFIX, n] for n in range(4)}
    outputs = generate(engine, **{name: (p, greedy(3)) for name, p in prompts.items()})
    assert engine.model_runner.model.steps[0] == [31, 3, 3, 3]
    for name, prompt in prompts.items():
        assert tokens(outputs[name]) == greedy_reference(prompt, 3, by_length=False)


def test_the_last_token_always_runs():
    engine = engine_of()
    prompt = PREFIX[:28]  # whole pages
    for name in "ab":
        output = generate(engine, **{name: (prompt, greedy(2))})[name]
        assert tokens(output) == greedy_reference(prompt, 2, by_length=False)
    assert output.metrics.num_cached_tokens == 24


def test_other_sampling_params_share_and_change_nothing():
    ways = {
        "greedy": greedy(6),
        "hot": sampled(temperature=1.7),
        "seeded": sampled(seed=9),
        "few": sampled(top_k=3, min_p=0.01),
        "stops": sampled(stop_token_ids=[3, 5]),
    }
    alone = {
        name: tokens(generate(engine_of(), x=(PREFIX, params))["x"])
        for name, params in ways.items()
    }
    engine = engine_of()
    for name, params in ways.items():
        output = generate(engine, **{name: (PREFIX, params)})[name]
        assert tokens(output) == alone[name], name
    assert output.metrics.num_cached_tokens == 28
    together = generate(engine_of(), **{name: (PREFIX, params) for name, params in ways.items()})
    assert {name: tokens(output) for name, output in together.items()} == alone


def test_switched_off_nothing_is_shared():
    engine = engine_of(prefix_caching=False)
    outputs = generate(engine, a=(PREFIX, greedy(2)), b=(PREFIX, greedy(2)))
    assert engine.model_runner.model.steps[0] == [30, 30]
    assert outputs["b"].metrics.num_cached_tokens == engine.stats.num_cached_tokens == 0
    assert len(engine.scheduler.page_pool.known) == 0


def test_pages_that_depend_on_the_length_are_shared_by_prompts_of_one_length():
    engine = engine_of(MemoryModel())
    longer = [*PREFIX, 7]
    same = [*PREFIX[:29], 9]
    for name, prompt, cached in (("a", PREFIX, 0), ("b", longer, 0), ("c", same, 28)):
        output = generate(engine, **{name: (prompt, greedy(4))})[name]
        assert output.metrics.num_cached_tokens == cached, name
        assert tokens(output) == greedy_reference(prompt, 4)


def test_up_to_the_border_the_length_does_not_matter():
    engine = engine_of(MemoryModel(by_length=False))
    engine.admission.length_border = 31
    for name, prompt, cached in (
        ("a", PREFIX, 0),
        ("b", [*PREFIX, 7], 28),
        ("c", [*PREFIX, 7, 8], 0),
        ("d", [*PREFIX, 7, 9], 28),
    ):
        output = generate(engine, **{name: (prompt, greedy(1))})[name]
        assert output.metrics.num_cached_tokens == cached, name


def test_a_prompt_to_be_scored_is_computed():
    engine = engine_of()
    generate(engine, a=(PREFIX, greedy(2)))
    engine.model_runner.model.steps.clear()
    output = generate(engine, b=(PREFIX, greedy(2, prompt_logprobs=0)))["b"]
    assert engine.model_runner.model.steps[0] == [30]
    assert len(output.prompt_logprobs) == 30
    assert tokens(output) == greedy_reference(PREFIX, 2, by_length=False)


def test_a_preempted_sequence_takes_up_what_is_left_of_its_pages():
    engine = engine_of(num_pages=10, max_model_len=40)
    prompts = {"a": list(range(16)), "b": list(range(20, 36))}
    outputs = generate(engine, **{name: (prompt, greedy(8)) for name, prompt in prompts.items()})
    assert engine.stats.num_preemptions == 1
    assert engine.stats.num_cached_tokens == 16  # of five pages, a has taken the last one
    for name, prompt in prompts.items():
        assert tokens(outputs[name]) == greedy_reference(prompt, 8, by_length=False)


def test_pages_of_failed_logits_are_not_shared():
    engine = engine_of(ScriptedModel([3, 3, 3, 3, 3, 3, 3, None]))
    bad = generate(engine, a=([1] * 6, greedy(9)))["a"]
    assert bad.error is not None
    assert generate(engine, b=([1] * 6, greedy(1)))["b"].metrics.num_cached_tokens == 0


@pytest.mark.parametrize("ends_first", ["a", "b"])
def test_after_a_failed_step_nothing_that_it_promised_is_read(ends_first):
    """b shares pages that a was to fill in the very step that failed, and one of them is gone."""

    class Flaky(MemoryModel):
        def forward(self, input_ids, ctx):
            if not self.steps:
                self.steps.append([])
                raise RuntimeError("out of memory")
            return super().forward(input_ids, ctx)

    engine = engine_of(Flaky(by_length=False))
    engine.add_request("a", PREFIX, greedy(3))
    engine.add_request("b", PREFIX, greedy(3))
    with pytest.raises(RuntimeError):
        engine.step()
    engine.check_integrity()
    engine.abort(ends_first)
    (output,) = run(engine).values()
    assert tokens(output) == greedy_reference(PREFIX, 3, by_length=False)


def test_eviction_under_pressure_changes_nothing():
    engine = engine_of(num_pages=14, max_model_len=56)
    for turn in range(12):
        prompts = [[*range(1 + k, 13 + k), turn] for k in (0, turn % 3 * 20)]
        outputs = generate(engine, **{f"{turn}.{k}": (p, greedy(9)) for k, p in enumerate(prompts)})
        for k, prompt in enumerate(prompts):
            assert tokens(outputs[f"{turn}.{k}"]) == greedy_reference(prompt, 9, by_length=False)
    assert 0 < engine.stats.cache_hit_rate < 1
    assert VOCAB > 53
