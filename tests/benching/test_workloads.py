"""What counts of a workload, by a clock that only steps of the engine move."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tiny_llama import save_llama

from assembler import LLM
from assembler.benching.workloads import Spread, decode, measure, prefill, throughput


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LLM:
    """An engine each of whose steps takes a second, and nothing else any time."""
    save_llama(tmp_path)
    llm = LLM(tmp_path, enable_prefix_caching=False)
    now = [0.0]
    runner = llm.engine.model_runner
    execute = runner.execute

    def slow(*args):
        now[0] += 1.0
        return execute(*args)

    monkeypatch.setattr(runner, "execute", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return llm


def test_a_decode_begins_behind_the_first_token(llm: LLM):
    found = measure(llm, decode(5), rounds=2)
    assert (found.name, found.median, found.tokens_per_s) == ("decode 5, 1 request", 4.0, 1.0)
    assert found.first_token == found.between_tokens == Spread(1.0, 1.0)


def test_a_prefill_ends_with_the_first_token(llm: LLM):
    found = measure(llm, prefill(20), rounds=2)
    assert (found.median, found.tokens_per_s, found.between_tokens) == (1.0, 20.0, None)
    assert found.to_json()["between_tokens"] is None
    assert found.to_json()["first_token"] == {"median_ms": 1000.0, "p99_ms": 1000.0}


def test_many_requests_count_all_their_outputs(llm: LLM):
    workload = throughput(3, 16, 8)
    outputs = [output for _, output in workload.shapes]
    found = measure(llm, workload, rounds=2)
    assert found.median == found.fastest == max(outputs) > min(outputs)
    assert found.tokens_per_s == sum(outputs) / max(outputs)


def test_tokens_that_wait_for_another_prompt_come_late(tmp_path: Path, llm: LLM):
    llm.engine.scheduler.max_num_batched_tokens = 10  # the prompts are cut
    found = measure(llm, throughput(3, 16, 8), rounds=1)
    assert found.first_token.p99 > found.first_token.median > 1.0


def test_of_a_hundred_times_one_may_be_longer():
    assert Spread.of([*range(1, 101)]) == Spread(50.5, 99)
    assert Spread.of([3.0]) == Spread(3.0, 3.0)
    assert Spread.of([]) is None
