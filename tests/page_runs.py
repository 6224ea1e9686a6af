"""Runs the commands of a page: the package's own and Python scripts in this process.

Starting a process costs more than most of them take; torchrun and the shell's own get one.
"""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from assembler.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[[Sequence[str]], str]


def in_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """A runner of commands, beginning in `folder`; it returns what they print, or the error."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(argv: Sequence[str]) -> str:
        capsys.readouterr()
        match argv:
            case ["cd", to]:
                monkeypatch.chdir(to)
            case ["python", "-m", "pytest", *_]:
                pytest.fail("a test runner within a test: leave it out of the page's commands")
            case ["python", "-m", module, *arguments]:
                _command(module, arguments)
            case ["python", script, *arguments]:
                _script(script, arguments, monkeypatch)
            case ["torchrun", *arguments]:
                return _process([sys.executable, "-m", "torch.distributed.run", *arguments])
            case _:
                return _process(argv)
        printed = capsys.readouterr()
        return printed.out or printed.err[printed.err.find("error: ") :]

    return run


def _command(module: str, arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(importlib.import_module(module).main, arguments)
    assert stop.value.code in (0, 1, 2), (module, arguments, stop.value.code)


def _script(script: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script as `python` would, and forget the modules beside it."""
    known = set(sys.modules)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend(str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")
    beside = Path(script).resolve().parent
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).parent == beside:
            del sys.modules[name]


def _process(argv: Sequence[str]) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done.stdout
