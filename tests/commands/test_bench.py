"""`assembler.bench` measures models that are there and models of a config alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_runs import Run

from assembler import bench
from assembler.kernels.cpu_library import cpu_library

SMALL = ("rounds=1", "requests=3", "input_len=16", "output_len=8", "decode_len=4", "prefill_len=24")


def test_every_workload_has_a_line_and_every_step_its_kernels(tiny: Path, run: Run):
    result = run(bench, f"checkpoint={tiny}", *SMALL)
    assert result.status == 0
    rates = re.findall(r"(.*\S) +([0-9.]+) +[0-9.]+s +[0-9.]+s +([0-9.]+) \(", result.out)
    assert [name.strip() for name, *_ in rates] == [
        "decode 4, 1 request",
        "prefill 24",
        "throughput, 3 requests",
    ]
    assert all(float(rate) > 0 and float(first) > 0 for _, rate, first in rates)
    assert "prefill of 24: " in result.out and "decode, context 25: " in result.out
    if cpu_library() is not None:
        assert len(re.findall(r"^ linear +32 -> 260 ", result.out, re.M)) == 2
    without = run(bench, f"checkpoint={tiny}", *SMALL, "kernels=false")
    assert "throughput, 3" in without.out and "context" not in without.out


def test_json_has_all_of_it(tiny: Path, run: Run):
    result = run(bench, f"checkpoint={tiny}", *SMALL, "format=json", "enforce_eager=true")
    found = json.loads(result.out)
    steps = found.pop("kernels")
    assert [*found] == ["decode 4, 1 request", "prefill 24", "throughput, 3 requests"]
    for name, values in found.items():
        assert values["tokens_per_s"] > 0 and values["fastest_s"] <= values["median_s"]
        assert 0 < values["first_token"]["median_ms"] <= values["first_token"]["p99_ms"]
        assert (values["between_tokens"] is None) == name.startswith("prefill")
    assert [step["step"] for step in steps] == ["prefill of 24", "decode, context 25"]
    for step, rows in zip(steps, (24, 1), strict=True):
        assert step["measured_by"] == "torch's profiler"
        kernels = {(kernel["kernel"], kernel["shape"]): kernel for kernel in step["kernels"]}
        up = kernels["aten::mm", f"[{rows},32] [32,48]"]
        assert up["calls"] == 3
        assert up["GFLOP_per_s"] == pytest.approx(3 * 2 * rows * 32 * 48 / up["ms"] / 1e6)


def test_random_weights_need_a_config_alone(tiny: Path, run: Run):
    config = f"checkpoint={tiny / 'config.json'}"
    result = run(bench, config, "load=dummy", "conf.layers.count=1", *SMALL)
    assert result.status == 0
    assert "prefill 24" in result.out


def test_what_does_not_fit_is_skipped(tiny: Path, run: Run):
    result = run(bench, f"checkpoint={tiny}", *SMALL[:-1], "prefill_len=999")
    assert result.status == 0
    assert "prefill 999: skipped" in result.err
    few = (*SMALL[:2], "input_len=300", "output_len=300", "decode_len=300", "prefill_len=300")
    result = run(bench, f"checkpoint={tiny}", *few, "max_model_len=20")
    assert result.status == 2
    assert "too short for any workload" in result.err
    result = run(bench, f"checkpoint={tiny}", *SMALL[1:], "rounds=21", "max_model_len=24")
    assert "kernels: skipped" in result.err
