"""The measurement of process starts."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture
def startup(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("startup")


def _printing(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"print({text!r})"]


def test_commands_take_turns_and_are_measured_whole(startup):
    commands = {"assembler": _printing("The"), "transformers": _printing("The")}
    starts = startup.take_turns(commands, rounds=2, threads=1)
    assert [len(every) for every in starts.values()] == [2, 2]
    assert all(s.seconds > 0 and s.text == "The" for every in starts.values() for s in every)
    assert startup.rows(starts)[-1].startswith("| transformers |")
    assert startup.rows(starts)[-1].endswith("| 1.00 (1.00 to 1.00) |")


def test_other_tokens_are_an_error(startup):
    commands = {"assembler": _printing("The"), "transformers": _printing("A")}
    with pytest.raises(ValueError, match="first tokens differ"):
        startup.take_turns(commands, rounds=0, threads=1)
