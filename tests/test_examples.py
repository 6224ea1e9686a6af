"""The examples run, and print what their pages say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from page_commands import run_steps
from page_runs import in_folder
from safetensors.torch import load_file
from tiny_llama import save_llama

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
# These take real weights, or many runs.
SLOW = {"offline_generation", "export_after_change", "override_sweep", "tensor_parallel"}


@pytest.fixture
def copy(tmp_path: Path):
    """Copies an example: what it writes stays out of the repository."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(EXAMPLES / name, tmp_path / name))

    return make


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FOLDERS],
)
def test_its_page_is_true(name: str, copy, monkeypatch, capsys):
    folder = copy(name)
    assert run_steps(folder / "README.md", in_folder(folder, monkeypatch, capsys)) > 0


def test_the_overview_names_them_all():
    text = (EXAMPLES / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"\| \[(\w+)\]\(\1/README\.md\)", text)) == FOLDERS


def test_offline_generation_with_a_checkpoint_of_ones_own(copy, tmp_path, monkeypatch, capsys):
    save_llama(tmp_path / "model")
    run = in_folder(copy("offline_generation"), monkeypatch, capsys)
    lines = run(["python", "generate.py", str(tmp_path / "model")])
    assert "'The capital of France is" in lines and "\n2 '" in lines


def test_an_export_holds_the_change_and_nothing_else(copy, tmp_path, monkeypatch, capsys):
    save_llama(tmp_path / "model")
    run = in_folder(copy("export_after_change"), monkeypatch, capsys)
    said = run(["python", "change.py", "changed", str(tmp_path / "model")])
    assert "transformers has the same logits of changed" in said
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file("changed/model.safetensors")
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]
