"""The GPU harness runs without a GPU, reports no number then, and fails on a wrong kernel."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

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
    wrong = harness("gpu_checks")
    monkeypatch.setattr(wrong, "layer_norm_torch", lambda x, *_: x)
    monkeypatch.setattr(harness("gpu_model_checks"), "model_checks", lambda *_: iter(()))
    file = tmp_path / "gpu.json"
    assert harness("gpu").main(["--smoke", "--json", str(file)]) == 1
    assert "FAILED  add + LayerNorm, float32" in capsys.readouterr().out
    assert [row["group"] for row in rows(file)] == ["check", "check"]


def test_an_unwritten_output_is_an_error(harness):
    error = harness("gpu_checks")._error
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
    timing = harness("gpu_timing")
    clock = timing.Clock(torch.device("cuda"))
    monkeypatch.setattr(timing.Clock, "seconds", lambda *_: 2.0)
    roof = Roof("a device", bytes_per_second=100.0, flops_per_second=1000.0)
    row = clock.compare("g", "n", None, Cost(bytes=180, flops=10), roof, target=0.85)
    assert (row.share, row.of, row.verdict) == (0.9, "measured copy", "ok")
    row = clock.compare("g", "n", None, Cost(bytes=1, flops=1000), roof, target=0.85)
    assert (row.share, row.of, row.verdict) == (0.5, "measured product", "below")
    assert row.as_json()["verdict"] == "below"


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
