"""`assembler.bench` measures models that are there and models of a config alone."""

from __future__ import annotations

import re
from pathlib import Path

from command_runs import Run

from assembler import bench

SMALL = ("rounds=1", "requests=3", "input_len=16", "output_len=8", "decode_len=4", "prefill_len=24")


def test_every_workload_has_a_line(tiny: Path, run: Run):
    result = run(bench, f"checkpoint={tiny}", *SMALL)
    assert result.status == 0
    assert "decode 4, 1 request" in result.out
    assert "throughput, 3 requests" in result.out
    rates = re.findall(r" ([0-9.]+) +[0-9.]+s +[0-9.]+s$", result.out, re.M)
    assert len(rates) == 3
    assert all(float(rate) > 0 for rate in rates)


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
