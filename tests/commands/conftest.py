"""Checkpoints to run commands on, and the runner."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_runs import Result, Run
from tiny_llama import save_llama, write_gguf
from transformers import LlamaForCausalLM

from assembler import LLM, SamplingParams
from assembler.command_line import run_command


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def reference(home: Path) -> LlamaForCausalLM:
    """transformers' model of the checkpoint `home`/tiny, which also lies in `home`/tiny.gguf."""
    model = save_llama(home / "tiny")
    write_gguf(home / "tiny.gguf", model)
    return model


@pytest.fixture
def tiny(reference: LlamaForCausalLM, home: Path) -> Path:
    return home / "tiny"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(command: Any, *argv: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(command.main, list(map(str, argv)))
        return Result(stop.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, SamplingParams]]:
    """Filled with the text the model is given, and how it is sampled, by each `generate`."""
    seen: list[tuple[str, SamplingParams]] = []
    stream = LLM.stream

    def record(llm: LLM, prompt: Sequence[int], params: SamplingParams) -> Any:
        text = llm.get_tokenizer().decode(prompt, skip_special_tokens=False)
        seen.append((text, params))
        return stream(llm, prompt, params)

    monkeypatch.setattr(LLM, "stream", record)
    return seen
