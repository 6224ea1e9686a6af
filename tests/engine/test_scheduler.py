import pytest

from assembler.engine.page_pool import PagePool
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.scheduler import Scheduler
from assembler.engine.sequence import Sequence, SequenceStatus


def sequence(name, length, **params):
    params.setdefault("max_tokens", 50)
    return Sequence(name, [1] * length, SamplingParams(**params), max_length=1000)


def scheduler_of(*sequences, pages=100, page_size=4, tokens=16, seats=8, chunked=True):
    scheduler = Scheduler(
        PagePool(pages, page_size),
        max_num_batched_tokens=tokens,
        max_num_seqs=seats,
        chunked_prefill=chunked,
    )
    for each in sequences:
        scheduler.add(each)
    return scheduler


def step(scheduler, token_id=7):
    """Schedule and pretend to run; [(request, start, tokens, samples)]."""
    batch = scheduler.schedule()
    rows = [(i.sequence.request_id, i.start, i.num_new_tokens, i.samples) for i in batch.items]
    scheduler.launched(batch)
    scheduler.update(batch, [token_id] * len(batch.sampling_sequences))
    scheduler.check_integrity()
    return rows


def test_prefill_in_chunks_mixed_with_decode_under_the_token_budget():
    scheduler = scheduler_of(sequence("a", 6), sequence("b", 20))
    assert step(scheduler) == [("a", 0, 6, True), ("b", 0, 10, False)]
    assert step(scheduler) == [("a", 6, 1, True), ("b", 10, 10, True)]
    assert step(scheduler) == [("a", 7, 1, True), ("b", 20, 1, True)]


def test_whole_prompts_wait_for_a_step_with_room():
    names = {"a": 6, "b": 10, "c": 3, "d": 16}
    scheduler = scheduler_of(*(sequence(n, size) for n, size in names.items()), chunked=False)
    assert step(scheduler) == [("a", 0, 6, True), ("b", 0, 10, True)]
    assert step(scheduler)[2:] == [("c", 0, 3, True)]  # d is not cut, and nobody overtakes it
    for running in [*scheduler.running]:
        scheduler.finish(running, "abort")
    assert step(scheduler) == [("d", 0, 16, True)]


def test_a_failed_step_is_computed_anew():
    a, b = sequence("a", 6), sequence("b", 20)
    scheduler = scheduler_of(a, b)
    step(scheduler)
    scheduler.schedule()
    scheduler.restart()
    scheduler.check_integrity()
    assert list(scheduler.waiting) == [a, b] and scheduler.page_pool.num_free == 100
    assert step(scheduler) == [("a", 0, 7, True), ("b", 0, 9, False)]


def test_pages_are_taken_as_tokens_need_them():
    a = sequence("a", 4)
    scheduler = scheduler_of(a)
    step(scheduler)
    assert len(a.pages) == 1
    step(scheduler)  # stores the fifth token
    assert len(a.pages) == 2


def test_no_more_than_max_num_seqs_run_first_come_first_served():
    scheduler = scheduler_of(*(sequence(n, 2) for n in "abc"), seats=2)
    assert [row[0] for row in step(scheduler)] == ["a", "b"]
    scheduler.finish(scheduler.running[0], "abort")
    assert [row[0] for row in step(scheduler)] == ["b", "c"]


def test_a_long_prompt_is_not_overtaken():
    scheduler = scheduler_of(sequence("a", 12), sequence("b", 13), sequence("c", 2), pages=4)
    for _ in range(3):
        assert [row[0] for row in step(scheduler)] == ["a"]  # b does not fit, c waits behind it
    scheduler.finish(scheduler.running[0], "abort")
    assert [row[0] for row in step(scheduler)] == ["b"]


def test_the_newest_is_preempted_and_computed_again():
    a, b = sequence("a", 4), sequence("b", 4)
    scheduler = scheduler_of(a, b, pages=3)
    step(scheduler)
    assert step(scheduler) == [("a", 4, 1, True)]  # takes the third page; b has to go
    assert scheduler.num_preemptions == 1
    assert b.status is SequenceStatus.WAITING and not b.pages and b.num_computed_tokens == 0
    assert len(b) == 5, "the token it had sampled is kept"
    scheduler.finish(a, "abort")
    assert step(scheduler) == [("b", 0, 5, True)]


def test_a_sequence_that_is_the_newest_itself_gives_way():
    a, b = sequence("a", 3), sequence("b", 4)
    scheduler = scheduler_of(a, b, pages=2)
    step(scheduler)
    assert step(scheduler) == [("a", 3, 1, True)]
    assert list(scheduler.waiting) == [b]


def test_nothing_new_starts_in_a_step_that_preempts():
    scheduler = scheduler_of(sequence("a", 4), sequence("b", 4), sequence("c", 1), pages=3)
    step(scheduler)
    assert [row[0] for row in step(scheduler)] == ["a"]
    assert [s.request_id for s in scheduler.waiting] == ["b", "c"]


def test_a_step_that_never_ran_is_scheduled_again():
    scheduler = scheduler_of(sequence("a", 6), sequence("b", 20))
    first = scheduler.schedule()
    scheduler.check_integrity()
    assert scheduler.schedule() == first


@pytest.mark.parametrize(
    ("params", "token_id", "reason"),
    [
        ({}, 9, "stop"),
        ({"ignore_eos": True}, 9, None),
        ({"stop_token_ids": [5]}, 5, "stop"),
        ({"stop_token_ids": [5], "ignore_eos": True}, 5, "stop"),
        ({"max_tokens": 1}, 5, "length"),
        ({"max_tokens": 1}, 9, "stop"),
        ({"max_tokens": None}, 5, None),
        ({}, None, "abort"),
    ],
)
def test_how_a_sequence_ends(params, token_id, reason):
    sequence = Sequence("a", [1, 2], SamplingParams(**params), max_length=10, eos_token_ids={9})
    scheduler = scheduler_of(sequence)
    step(scheduler, token_id)
    assert sequence.finish_reason == reason
    assert bool(scheduler.running) == (reason is None)
    assert scheduler.page_pool.num_free == (100 if reason else 99)


def test_the_length_of_the_model_ends_a_sequence():
    sequence = Sequence("a", [1, 2], SamplingParams(max_tokens=None), max_length=4)
    scheduler = scheduler_of(sequence)
    step(scheduler)
    assert not sequence.is_finished
    step(scheduler)
    assert sequence.finish_reason == "length" and len(sequence) == 4


def test_finish_of_waiting_and_running_frees_everything():
    a, b = sequence("a", 20), sequence("b", 5)
    scheduler = scheduler_of(a, b)
    step(scheduler)  # a is in the middle of its prompt, b waits
    scheduler.finish(b, "abort")
    scheduler.finish(a, "abort")
    assert not (scheduler.running or scheduler.waiting)
    assert scheduler.page_pool.num_free == 100


def test_prompts_are_scored_in_parts_while_others_go_on(monkeypatch):
    """Their logits over a large vocabulary would not fit the memory."""
    monkeypatch.setattr("assembler.engine.scheduled_batch.MAX_SCORED_TOKENS", 5)
    a, b = (sequence(name, 9, prompt_logprobs=0) for name in "ab")
    scheduler = scheduler_of(a, sequence("c", 3), b, sequence("d", 2), tokens=40)
    assert step(scheduler) == [("a", 0, 5, False), ("c", 0, 3, True)]  # d does not overtake b
    assert [row[:3] for row in step(scheduler)] == [
        ("a", 5, 4),  # and the logits of three: the last token stands before no other
        ("c", 3, 1),
        ("b", 0, 2),
        ("d", 0, 2),
    ]
    assert step(scheduler)[2] == ("b", 2, 5, False)
    assert step(scheduler)[2] == ("b", 7, 2, True)


def test_a_prompt_that_is_scored_keeps_the_pages_it_will_need(monkeypatch):
    monkeypatch.setattr("assembler.engine.scheduled_batch.MAX_SCORED_TOKENS", 4)
    scheduler = scheduler_of(sequence("a", 12, prompt_logprobs=0), sequence("b", 8), pages=4)
    while scheduler.running[:1] == [] or scheduler.running[0].num_generated_tokens < 2:
        assert [row[0] for row in step(scheduler)] == ["a"]
    assert scheduler.num_preemptions == 0


def test_a_prompt_that_is_not_cut_is_scored_whole():
    scored = sequence("a", 600, prompt_logprobs=0)
    scheduler = scheduler_of(scored, pages=200, tokens=700, chunked=False)
    assert step(scheduler) == [("a", 0, 600, True)]
