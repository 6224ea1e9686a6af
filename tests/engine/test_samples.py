"""Several samples of one request: they share the prompt's pages, and each has draws of its own."""

import pytest
from engine_fakes import MemoryModel, ScriptedModel, make_engine, run

from assembler.engine.sampling_params import SamplingParams

PROMPT = list(range(1, 23))  # 5 pages of 4, and 2 tokens


def params(n, **others):
    return SamplingParams(**{"n": n, "temperature": 1.3, "seed": 3, "max_tokens": 7, **others})


def samples(engine, n=4, **others):
    engine.add_request("a", PROMPT, params(n, **others))
    output = run(engine)["a"]
    assert [done.index for done in output.outputs] == list(range(n))
    return [done.token_ids for done in output.outputs]


WAYS = {
    "plain": {},
    "chunks": {"max_num_batched_tokens": 8, "max_num_seqs": 8},
    "one at a time": {"max_num_seqs": 1},
    "preemption": {"num_pages": 8, "max_model_len": 32},
    "no prefix caching": {"prefix_caching": False},
    "scattered": {"shuffle_pages": 4, "page_size": 3},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_samples_do_not_depend_on_the_batch(way):
    expected = samples(make_engine(MemoryModel()))
    assert samples(make_engine(MemoryModel(), **way)) == expected
    assert len(set(map(tuple, expected))) == 4


def test_the_first_sample_is_that_of_a_request_for_one():
    assert samples(make_engine(MemoryModel()))[:1] == samples(make_engine(MemoryModel()), n=1)


def test_samples_without_a_seed_differ():
    assert len(set(map(tuple, samples(make_engine(MemoryModel()), seed=None)))) == 4


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_the_pages_of_the_prompt_are_shared(prefix_caching):
    engine = make_engine(MemoryModel(), prefix_caching=prefix_caching)
    engine.add_request("a", PROMPT, params(4))
    engine.step()
    assert engine.model_runner.model.steps == [[22, 2, 2, 2]]
    pool = engine.scheduler.page_pool
    assert pool.num_pages - pool.num_free == 5 + 4
    engine.check_integrity()
    engine.add_request("b", PROMPT, params(1))
    engine.step()
    assert engine.model_runner.model.steps[1] == [1, 1, 1, 1, 2 if prefix_caching else 22]
    run(engine)


def test_every_report_shows_all_samples():
    engine = make_engine(ScriptedModel([5] * 50))
    engine.add_request("a", [1] * 3, params(3))
    reports = []
    while not engine.is_finished():
        (output,) = engine.step()
        reports.append([len(done.token_ids) for done in output.outputs])
        assert output.finished == (len(reports) == 7)
    assert reports == [[n] * 3 for n in range(1, 8)]
    assert output.metrics.num_generated_tokens == 21


def test_samples_end_one_by_one():
    engine = make_engine(MemoryModel(), max_num_seqs=2)
    engine.add_request("a", PROMPT, params(3, max_tokens=5))
    finished = []
    while not engine.is_finished():
        for output in engine.step():
            finished.append([done.finish_reason for done in output.outputs])
    assert finished[4] == ["length", "length", None] and finished[-1] == ["length"] * 3
    assert not any(None in reasons for reasons in finished[-1:])


def test_abort_ends_all_samples():
    engine = make_engine(MemoryModel(), max_num_seqs=2)
    engine.add_request("a", PROMPT, params(5))
    engine.step()
    output = engine.abort("a")
    assert output.finished and len(output.outputs) == 5
    assert {done.finish_reason for done in output.outputs} == {"abort"}
    assert run(engine) == {}


def test_not_numbers_end_every_sample():
    engine = make_engine(ScriptedModel([4, 4, 4, None]))
    engine.add_request("a", [1, 1], params(3))
    output = run(engine)["a"]
    assert output.error is not None
    assert [done.finish_reason for done in output.outputs] == ["abort"] * 3
