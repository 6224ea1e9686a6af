"""`LLM` over several processes: the same text, and an end with the cause when a rank is lost."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import named
from launched import finish, launch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import make_checkpoint

from assembler import LLM, SamplingParams
from assembler.errors import OptionError, RankError, RequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = [[5, 9, 3], [7] * 20, [1, 2]]
SMALL = {"load": "dummy", "kv_cache_memory_bytes": 1 << 20, "max_num_batched_tokens": 16}
SMALL |= {"max_num_seqs": 4}
LIMIT = 30.0  # seconds within which all ranks must have ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    make_checkpoint(named("llama-biases"), path)
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def tokens(llm: LLM) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_models_side_by_side_give_the_text_of_one_process(folder: Path) -> None:
    expected = tokens(LLM(folder, **SMALL))
    first = LLM(folder, tensor_parallel_size=2, **SMALL)
    with LLM(folder, tensor_parallel_size=2, **SMALL) as second:
        assert tokens(first) == tokens(second) == expected
        pids = [*first._ranks.processes.pids.values(), *second._ranks.processes.pids.values()]
        assert len(pids) == 2 and all(map(is_running, pids))
    with pytest.raises(RequestError, match="has been closed"):
        tokens(second)
    assert tokens(first) == expected  # it goes on
    del first
    gc.collect()
    assert not any(map(is_running, pids))


def test_a_killed_rank_ends_the_model_with_the_reason(folder: Path) -> None:
    llm = LLM(folder, tensor_parallel_size=2, **SMALL)
    stream = llm.stream(PROMPTS[0], GREEDY)
    next(stream)
    (pid,) = llm._ranks.processes.pids.values()
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 was killed \(SIGKILL, as the system does"):
        list(stream)
    assert time.monotonic() - start < LIMIT and not is_running(pid)
    with pytest.raises(RankError, match="ended with an error: rank 1 was killed"):
        tokens(llm)


# Imported at the start of a rank's process alone: only ranks that receive their steps unpack them.
FAULT = """\
from assembler.engine.step_inputs import StepInputs

def unpack(packed):
    raise {error}

StepInputs.unpack = unpack
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RuntimeError('no such luck')", r"rank 1: RuntimeError: no such luck\nTraceback (.|\n)*"),
        pytest.param(
            "__import__('assembler.errors').errors.SpecError('a reason')",
            "rank 1: a reason$",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "SystemExit(__import__('os')._exit(3))",
            "rank 1 ended with exit status 3",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_error_of_another_rank_is_shown(
    error: str, message: str, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(error=error))
    monkeypatch.syspath_prepend(tmp_path)
    llm = LLM(folder, tensor_parallel_size=2, **SMALL)
    start = time.monotonic()
    with pytest.raises(RankError, match=message):
        tokens(llm)
    assert time.monotonic() - start < LIMIT
    assert not any(map(is_running, llm._ranks.processes.pids.values()))


@pytest.mark.slow
def test_ranks_end_with_a_parent_that_is_killed(folder: Path) -> None:
    code = (
        "import time; from assembler import LLM\n"
        f"llm = LLM({str(folder)!r}, tensor_parallel_size=2, **{SMALL})\n"
        "print(*llm._ranks.processes.pids.values(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    deadline = time.monotonic() + LIMIT
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


@pytest.mark.slow
def test_a_launched_rank_that_dies_ends_the_others(folder: Path, tmp_path: Path) -> None:
    fault = FAULT.format(error="SystemExit(__import__('os')._exit(3))")
    (tmp_path / "sitecustomize.py").write_text(fault)
    command = ["-m", "assembler.generate", f"checkpoint={folder}", "prompt=5", "tp=2"]
    command += [f"{key}={value}" for key, value in SMALL.items()]
    start = time.monotonic()
    (status, text, error), (other_status, _, _) = finish(launch(command, 2, [tmp_path]), LIMIT)
    assert time.monotonic() - start < LIMIT
    assert (status, other_status, text) == (2, 3, "")
    assert error.startswith("error: rank 0 has lost another rank, which left no error")


def test_what_cannot_be_split_is_refused_before_a_rank_is_started(folder: Path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(ValueError, match="'q' has 4 units of 20 rows in 2 groups, which 3 ranks"):
        LLM(folder, tensor_parallel_size=3, **SMALL)


@pytest.mark.parametrize(("world", "size"), [(4, 2), (1, 2), (2, 1)])
def test_another_world_size_says_what_to_do(world: int, size: int, folder: Path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    message = rf"WORLD_SIZE={world}\) but tensor_parallel_size is {size}: pass tp={world}"
    with pytest.raises(OptionError, match=message):
        LLM(folder, tensor_parallel_size=size, **SMALL)


@pytest.mark.slow
def test_the_command_of_launched_ranks_prints_once(folder: Path) -> None:
    options = [f"{key}={value}" for key, value in SMALL.items()]
    command = ["-m", "assembler.generate", f"checkpoint={folder}", "prompt=5 9 3", *options]
    command += ["max_tokens=12", "ignore_eos=true", "tp=2"]
    (status, text, _), (other_status, other_text, error) = finish(launch(command, 2))
    assert (status, other_status, other_text, error) == (0, 0, "", "")
    with LLM(folder, **SMALL) as llm:
        assert text.split() == [str(n) for n in tokens(llm)[0]]


@pytest.mark.slow
def test_a_launched_rank_that_cannot_load_ends_all(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    command = ["-m", "assembler.generate", f"checkpoint={tmp_path}", "prompt=5", "tp=2"]
    start = time.monotonic()
    ranks = finish(launch(command, 2), limit=LIMIT)
    assert time.monotonic() - start < LIMIT
    assert all(status != 0 and text == "" for status, text, _ in ranks)
    assert any("missing: norm.weight" in error for _, _, error in ranks)
