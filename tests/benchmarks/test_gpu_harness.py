"""The GPU harness runs without a GPU, reports no number then, and fails on a wrong kernel."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from assembler.engine.outputs import Logprob
from assembler.kernels.cost import Cost, Roof


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch):
    """Modules of the harness by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


def rows(file: Path) -> list[dict]:
    report = json.loads(file.read_text())
    assert report["measured"] is False and "interpreter" in report["device"]
    assert report["versions"]["torch"] == torch.__version__
    assert all(row["seconds"] is row["share"] is None for row in report["rows"])
    return report["rows"]


def test_kernels_run_and_no_number_is_shown(harness, tmp_path, capsys):
    file = tmp_path / "gpu.json"
    assert harness("gpu").main(["--smoke", "--only", "kernels", "--json", str(file)]) == 0
    groups = [row["group"] for row in rows(file)]
    assert {"decode attention", "prefill attention", "rows", "grouped GEMM", "sampling"} <= {
        *groups
    }
    assert "%" not in capsys.readouterr().out


def test_a_wrong_kernel_fails_the_run_and_nothing_is_timed(harness, tmp_path, capsys, monkeypatch):
    wrong = harness("gpu_row_checks")
    monkeypatch.setattr(wrong, "layer_norm_torch", lambda x, *_: x)
    for group in ("attention", "head", "expert", "sampling"):
        monkeypatch.setattr(harness("gpu_checks"), f"{group}_checks", lambda *_: iter(()))
    monkeypatch.setattr(harness("gpu_model_checks"), "model_checks", lambda *_: iter(()))
    file = tmp_path / "gpu.json"
    assert harness("gpu").main(["--smoke", "--json", str(file)]) == 1
    assert "FAILED  add + LayerNorm, float32" in capsys.readouterr().out
    failed = [row["name"] for row in rows(file)]
    assert failed == ["add + LayerNorm, float32", "LayerNorm, float32", "kernels and tiny models"]


def test_a_check_that_raises_fails_and_the_others_run(harness, tmp_path, capsys, monkeypatch):
    def checks(*_):
        yield "one that raises", lambda: 1 / 0, 0.0
        yield "one that passes", lambda: 0.0, 0.0

    monkeypatch.setattr(harness("gpu_checks"), "checks", checks)
    monkeypatch.setattr(harness("gpu_model_checks"), "model_checks", lambda *_: iter(()))
    assert harness("gpu").main(["--smoke", "--only", "checks"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  one that raises: ZeroDivisionError" in said
    assert "ok  one that passes" in said and "1 of 2 passed" in said


def test_an_unwritten_output_is_an_error(harness):
    error = harness("gpu_errors").largest_error
    assert error(torch.tensor([1.0, torch.nan]), torch.ones(2)) == torch.inf
    assert error(torch.tensor([1.5, 2.0]), torch.ones(2)) == 0.5


@pytest.mark.slow
def test_whole_models_run_beside_transformers(harness, tmp_path):
    file = tmp_path / "gpu.json"
    assert harness("gpu").main(["--smoke", "--only", "checks", "models", "--json", str(file)]) == 0
    found = rows(file)
    assert not [row["note"] for row in found if "FAILED" in row["note"]]
    assert [row["group"] for row in found[1:]] == [
        "model", "model", "profile", "model", "transformers",
    ]  # fmt: skip


def test_without_a_gpu_it_says_so(harness, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert harness("gpu").main([]) == 2
    assert "no CUDA or HIP device: --smoke" in capsys.readouterr().err
    assert harness("gpu").main(["--device", "cpu"]) == 2


def test_shares_are_of_what_bounds_a_kernel(harness, monkeypatch):
    """A kernel that takes 2 s where a copy of as many bytes takes 1.9 s and, at its best, 1.8 s."""
    timing = harness("gpu_timing")
    clock = timing.Clock(torch.device("cpu"))
    monkeypatch.setattr(timing.Clock, "seconds", lambda _, run: 2.0 if run is None else 1.9)
    roof = Roof("a device", bytes_per_second=100.0, flops_per_second=1000.0)
    row = clock.compare("g", "n", None, Cost(bytes=180, flops=10), roof, target=0.95)
    assert (row.share, row.roof_share) == (0.95, 0.9)
    assert (row.of, row.verdict) == ("a copy of its bytes", "ok")
    row = clock.compare("g", "n", None, Cost(bytes=1, flops=1000), roof, target=0.85)
    assert (row.share, row.of, row.verdict) == (0.5, "measured product", "below")
    assert row.as_json()["verdict"] == "below" and row.roof_share is None


def test_a_large_kernel_stands_beside_the_measured_copy(harness, monkeypatch):
    timing = harness("gpu_timing")
    clock = timing.Clock(torch.device("cpu"))
    monkeypatch.setattr(timing.Clock, "seconds", lambda _, run: 2.0 if run is None else 1 / 0)
    cost = Cost(bytes=2 * timing.COPIED, flops=0)
    row = clock.compare("g", "n", None, cost, Roof("a device", cost.bytes / 1.5, 1.0))
    assert row.share == row.roof_share == 0.75


def test_the_table_shows_both_shares(harness, capsys):
    row = harness("gpu_timing").Result("g", "n", 2e-6, 0.9, "a copy of its bytes", 0.85, "", 0.25)
    harness("gpu")._print(row)
    assert capsys.readouterr().out.split() == [
        "g", "n", "2.0", "us", "90.0%", "85%", "25.0%", "ok;", "of", "a", "copy", "of", "its",
        "bytes",
    ]  # fmt: skip


@pytest.mark.parametrize(("rate", "timed"), [(1e-9, ["products"] * 2), (1e9, ["beside a copy"])])
def test_experts_bound_by_memory_are_not_asked_for_products(harness, monkeypatch, rate, timed):
    kernels, timing = harness("gpu_kernels"), harness("gpu_timing")
    found = []
    monkeypatch.setattr(timing.Clock, "compare", lambda *_: found.append("beside a copy"))
    monkeypatch.setattr(timing.Clock, "seconds", lambda *_: found.append("products"))
    clock = timing.Clock(torch.device("cpu"), smoke=True)
    list(kernels._experts(clock, Roof("a device", bytes_per_second=1.0, flops_per_second=rate)))
    assert found == timed


def test_kernels_that_overlap_keep_the_device_busy_once(harness):
    covered = harness("gpu_models").covered
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.0)]) == 4.0
    assert covered([]) == 0.0


def test_a_token_as_likely_as_the_other_is_no_error(harness):
    """A wrong one is, and so is one that is far less likely; what follows is not compared."""
    preferred = harness("gpu_model_checks").preferred
    likeliest = [
        {token: Logprob(logprob, rank) for rank, (token, logprob) in enumerate(place.items(), 1)}
        for place in ({7: -0.5, 3: -1.5}, {4: -1.0, 9: -1.25}, {2: -0.1, 8: -2.0})
    ]
    assert preferred([7, 4, 2], likeliest, [7, 4, 2]) == 0.0
    assert preferred([7, 4, 2], likeliest, [7, 9, 5]) == 0.25
    assert preferred([7, 4, 2], likeliest, [3, 4, 2]) == 1.0
    assert preferred([7, 4, 2], likeliest, [1, 4, 2]) == torch.inf
    assert preferred([7, 4, 2], likeliest, [7, 4]) == torch.inf


def test_the_requests_are_those_of_nano_vllm(harness):
    """256 sequences from seed 0, prompts drawn before all output lengths."""
    import random

    random.seed(0)
    prompts = [
        [random.randint(0, 10000) for _ in range(random.randint(100, 1024))] for _ in range(256)
    ]
    lengths = [random.randint(100, 1024) for _ in range(256)]
    requests = harness("gpu_models").nano_vllm_requests()
    assert [prompt for prompt, _ in requests] == prompts
    assert [count for _, count in requests] == lengths
    assert sum(lengths) == 133966
