"""The benchmark of engines: turns, ratios and workers that are processes of their own."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import os, sys
from protocol import serve

def load(settings):
    print("noise on stdout")
    if settings.variant == "broken":
        raise OSError("no weights in " + settings.model)
    short = settings.variant == "short"
    def generate(prompts, counts):
        if settings.variant == "dies":
            os._exit(3)
        return [[prompt[0]] * (count - short) for prompt, count in zip(prompts, counts)]
    return generate

serve(load, ("pytest",))
"""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _module(name: str):
    return importlib.import_module(name)


@pytest.fixture
def start(tmp_path: Path):
    """Starts a worker around an engine that repeats the first token of each prompt."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    started = []

    def start(variant: str = ""):
        contenders = _module("contenders")
        variables = {"PYTHONPATH": str(BENCHMARKS / "workers")}
        contender = contenders.Contender("echo", str(script), variables=variables)
        settings = {
            "model": "somewhere",
            "dtype": "float32",
            "threads": 1,
            "max_len": 8,
            "max_seqs": 2,
            "variant": variant,
        }
        log = tmp_path / "log"
        started.append(contenders.Worker(contender, Path(sys.executable), settings, log))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_a_worker_answers_and_is_stopped_while_it_waits(start, tmp_path):
    worker = start()
    assert worker.versions == {"pytest": pytest.__version__}
    answer = worker.generate([[7, 8], [9]], [2, 1])
    assert answer["tokens"] == [[7, 7], [9]]
    assert answer["seconds"] > 0
    assert "noise on stdout" in (tmp_path / "log").read_text()
    status = Path(f"/proc/{worker._process.pid}/stat")
    if status.exists():
        os.waitid(os.P_PID, worker._process.pid, os.WSTOPPED | os.WNOWAIT)
        assert status.read_text().split()[2] == "T"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("broken", "echo: OSError: no weights in somewhere"),
        ("dies", "echo: it ended"),
        ("short", r"generated \[1\] tokens instead of \[2\]"),
    ],
)
def test_a_worker_that_fails_is_named(start, variant, message):
    contenders = _module("contenders")
    with pytest.raises(contenders.WorkerError, match=message):
        start(variant).generate([[1]], [2])


class Clockwork:
    """A contender whose times are known."""

    def __init__(self, name: str, seconds: list[float], token: int, calls: list[str]) -> None:
        self.name, self._seconds, self._token, self._calls = name, iter(seconds), token, calls

    def generate(self, prompts, counts):
        self._calls.append(self.name)
        seconds = next(self._seconds)
        tokens = [[1, self._token] for _ in prompts]
        return {"tokens": tokens, "seconds": seconds, "cpu_seconds": seconds / 2}


def test_turns_change_and_ratios_are_those_of_rounds():
    turns = _module("turns")
    calls: list[str] = []
    ours = Clockwork("ours", [9.0, 1.0, 2.0, 4.0], 5, calls)
    theirs = Clockwork("theirs", [9.0, 3.0, 4.0, 4.0], 6, calls)
    batch = turns.Batch([[1, 2, 3]], [2])
    runs = turns.take_turns([ours, theirs], batch, rounds=3, warm_ups=1, clock="seconds")
    assert calls == ["theirs", "ours", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert runs["ours"].seconds == [1.0, 2.0, 4.0]
    first, second = turns.rows("decode", batch, runs, reference="theirs")
    assert first == "| decode | ours | 1.0 (0.5 to 2.0) | 1.00 (1.00 to 1.00) | 50% |"
    assert second == "| decode | theirs | 0.5 (0.5 to 0.7) | 2.00 (1.00 to 3.00) | 100% |"


def test_prefills_count_the_tokens_of_prompts():
    turns = _module("turns")
    assert turns.Batch([[1, 2, 3]], [1], counts_prompts=True).num_tokens == 3
    assert turns.Batch([[1, 2, 3]], [1]).num_tokens == 1


def test_the_workloads_are_always_the_same():
    engine = _module("engine")
    batch = engine.WORKLOADS["W"]
    assert (len(batch.prompts), sum(map(len, batch.prompts)), batch.num_tokens) == (32, 4966, 2575)
