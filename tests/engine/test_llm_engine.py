"""Whole runs over a model that sees every wrong page, slot, position and length."""

import random

import pytest
import torch
from engine_fakes import (
    VOCAB,
    MemoryModel,
    greedy_reference,
    make_engine,
    run,
)

from assembler.engine.llm_engine import current_device
from assembler.engine.sampling_params import SamplingParams


def mixed_requests(count, seed=0, **params):
    """[(id, prompt, params)] of many lengths."""
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))]
        max_tokens = rng.randint(1, 24)
        requests.append((f"r{number}", prompt, SamplingParams(max_tokens=max_tokens, **params)))
    return requests


def generate(engine, requests):
    for request in requests:
        engine.add_request(*request)
    return {name: output.outputs[0].token_ids for name, output in run(engine).items()}


GREEDY = mixed_requests(16, temperature=0)
EXPECTED = {name: greedy_reference(p, s.max_tokens) for name, p, s in GREEDY}

WAYS = {
    "plain": {},
    "scattered pages": {"shuffle_pages": 1},
    "chunked prefill": {"max_num_batched_tokens": 16, "max_num_seqs": 16},
    "preemption": {"num_pages": 17, "max_model_len": 65},
    "one at a time": {"max_num_seqs": 1},
    "page of one token": {"page_size": 1},
    "all at once": {
        "num_pages": 23,
        "page_size": 3,
        "max_model_len": 65,
        "max_num_batched_tokens": 7,
        "max_num_seqs": 7,
        "shuffle_pages": 2,
    },
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_greedy_tokens_do_not_depend_on_the_batch(way):
    engine = make_engine(MemoryModel(), **way)
    assert generate(engine, GREEDY) == EXPECTED


def test_the_ways_above_do_what_their_names_say():
    model = MemoryModel()
    generate(make_engine(model, **WAYS["chunked prefill"]), GREEDY)
    assert any(1 in lens and max(lens) > 1 for lens in model.steps), "prefill mixed with decode"
    assert max(sum(lens) for lens in model.steps) == 16
    for name in ("preemption", "all at once"):
        engine = make_engine(MemoryModel(), **WAYS[name])
        generate(engine, GREEDY)
        assert engine.scheduler.num_preemptions > 0, name


@pytest.mark.parametrize("way", ["scattered pages", "preemption", "all at once"])
def test_seeded_requests_do_not_depend_on_the_batch(way):
    requests = [
        (name, prompt, params.model_copy(update={"seed": number, "top_p": 0.9}))
        for number, (name, prompt, params) in enumerate(GREEDY)
    ]
    requests = [(n, p, s.model_copy(update={"temperature": 1.2})) for n, p, s in requests]
    alone = {}
    for request in requests:
        alone |= generate(make_engine(MemoryModel(), seed=None), [request])
    assert generate(make_engine(MemoryModel(), seed=None, **WAYS[way]), requests) == alone
    assert alone != EXPECTED


def test_requests_may_join_at_any_step():
    engine = make_engine(MemoryModel(), **WAYS["preemption"])
    waiting = list(GREEDY)
    tokens = {}
    while waiting or not engine.is_finished():
        if waiting:
            engine.add_request(*waiting.pop())
        for output in engine.step():
            tokens[output.request_id] = output.outputs[0].token_ids
        engine.scheduler.check_integrity()
    assert tokens == EXPECTED


def test_every_step_reports_the_tokens_so_far():
    engine = make_engine(MemoryModel())
    prompt = [1, 2, 3]
    engine.add_request("a", prompt, SamplingParams(temperature=0, max_tokens=4))
    seen = []
    while not engine.is_finished():
        (output,) = engine.step()
        seen.append((output.outputs[0].token_ids, output.outputs[0].finish_reason))
        assert output.finished == (output.outputs[0].finish_reason is not None)
        assert output.prompt_token_ids == prompt and output.prompt is None
    expected = greedy_reference(prompt, 4)
    assert seen == [(expected[:n], "length" if n == 4 else None) for n in range(1, 5)]
    assert engine.step() == []


def test_abort_while_waiting_prefilling_and_decoding():
    engine = make_engine(MemoryModel(), max_num_batched_tokens=8, max_num_seqs=8)
    params = SamplingParams(temperature=0, max_tokens=10)
    engine.add_request("decoding", [1, 2], params)
    engine.add_request("prefilling", list(range(30)), params)
    engine.add_request("waiting", [5], params)
    engine.step()
    outputs = {name: engine.abort(name) for name in ("decoding", "prefilling", "waiting")}
    assert {o.outputs[0].finish_reason for o in outputs.values()} == {"abort"}
    assert all(o.finished and o.error is None for o in outputs.values())
    assert [len(o.outputs[0].token_ids) for o in outputs.values()] == [1, 0, 0]
    assert engine.is_finished()
    run(engine)  # no page is missing
    assert engine.abort("decoding") is None
    assert engine.abort("never seen") is None


def test_abort_leaves_the_others_alone():
    engine = make_engine(MemoryModel(), **WAYS["preemption"])
    for request in GREEDY:
        engine.add_request(*request)
    for _ in range(4):
        engine.step()
    for name in ("r1", "r6", "r15"):
        engine.abort(name)
    for name, output in run(engine).items():
        assert output.outputs[0].token_ids == EXPECTED[name]


def test_a_model_that_raises_changes_no_request():
    class Flaky(MemoryModel):
        def forward(self, input_ids, ctx):
            if len(self.steps) in (2, 5):
                self.steps.append([])
                raise RuntimeError("the device is gone")
            return super().forward(input_ids, ctx)

    engine = make_engine(Flaky(), **WAYS["preemption"])
    for request in GREEDY:
        engine.add_request(*request)
    tokens, failures = {}, 0
    while not engine.is_finished():
        try:
            outputs = engine.step()
        except RuntimeError:
            failures += 1
            continue
        tokens |= {o.request_id: o.outputs[0].token_ids for o in outputs}
    assert failures == 2
    assert tokens == EXPECTED


def test_metrics_are_in_order():
    engine = make_engine(MemoryModel(), max_num_seqs=1)
    for name in "ab":
        engine.add_request(name, [1, 2, 3], SamplingParams(max_tokens=5))
    outputs = run(engine)
    for output in outputs.values():
        m = output.metrics
        assert m.arrival_time <= m.first_scheduled_time <= m.first_token_time < m.finished_time
        assert (m.num_prompt_tokens, m.num_generated_tokens) == (3, 5)
        assert m.time_to_first_token <= m.total_time
        decode_time = m.finished_time - m.first_token_time
        assert m.tokens_per_second == pytest.approx(4 / decode_time)
    first, second = outputs["a"].metrics, outputs["b"].metrics
    assert second.first_scheduled_time >= first.finished_time  # it had to queue
    assert second.queue_time == second.first_scheduled_time - second.arrival_time


def test_the_first_token_has_its_time_though_nobody_looks():
    engine = make_engine(MemoryModel())
    engine.add_request("a", [1, 2, 3], SamplingParams(max_tokens=5), stream=False)
    metrics = run(engine)["a"].metrics
    assert metrics.first_scheduled_time < metrics.first_token_time < metrics.finished_time
    assert metrics.tokens_per_second > 0


def test_metrics_of_a_request_without_tokens():
    engine = make_engine(MemoryModel())
    engine.add_request("a", [1])
    metrics = engine.abort("a").metrics
    assert metrics.finished_time is not None and metrics.first_token_time is None
    assert metrics.time_to_first_token is None and metrics.tokens_per_second is None


def test_a_step_runs_with_its_gpu_as_the_current_one():
    """Threads start with GPU 0, whichever the model is on."""
    assert current_device(torch.device("cuda", 3)).idx == 3
    with current_device(torch.device("cpu")):
        pass
