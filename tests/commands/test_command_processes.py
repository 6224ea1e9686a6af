"""Commands as a shell runs them: in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import REPOSITORY, SUMMARY, Run

from assembler import generate


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, encoding="utf-8", cwd=REPOSITORY
    )


@pytest.mark.parametrize("command", ["generate", "coverage", "export", "schema"])
def test_help_does_not_wait_for_torch(command: str):
    code = (
        f"import sys; from assembler.{command} import main; main(['--help']); "
        "assert not {'torch', 'numpy', 'triton', 'transformers'} & sys.modules.keys()"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m assembler.{command} ")


def test_as_a_shell_runs_it(tiny: Path, run: Run):
    text = "it's ${x}, a=b # naïve"
    arguments = (f"checkpoint={tiny}", f"prompt={text}", "max_tokens=6")
    done = process("-m", "assembler.generate", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(generate, *arguments).out
    assert SUMMARY.fullmatch(done.stderr), done.stderr
