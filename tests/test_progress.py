"""The bar over requests."""

from __future__ import annotations

import sys

import pytest

from assembler import progress
from assembler.engine.stats import EngineStats
from assembler.progress import GenerationBar


def ran(stats: EngineStats, **numbers: float) -> None:
    for name, number in numbers.items():
        setattr(stats, name, getattr(stats, name) + number)


def test_the_last_line_is_of_the_whole_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)
    stats = EngineStats(num_prefill_tokens=7, prefill_time=100.0)  # of requests before
    with GenerationBar(2, stats, enabled=True) as bar:
        ran(stats, num_prefill_tokens=900, prefill_time=3.0)
        bar.show(0)
        assert "prefill 300 tok/s" in capsys.readouterr().err
        ran(stats, num_decode_tokens=50, decode_time=2.0)
        bar.show(1)
        ran(stats, num_decode_tokens=50, decode_time=8.0)
        bar.show(2)
        now = capsys.readouterr().err
        assert "decode 25 tok/s" in now and "decode 6 tok/s" in now and "prefill" not in now
    last = capsys.readouterr().err.split("\r")[-1]
    assert "2/2" in last and "prefill 300 tok/s, decode 10 tok/s" in last


def test_a_silent_bar_needs_no_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with GenerationBar(2, EngineStats(), enabled=False) as bar:
        bar.show(1)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ImportError):
        GenerationBar(2, EngineStats(), enabled=True)
