"""A generated folder is complete, and its own test passes, and fails when the model is another."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import assembler
from assembler import new_architecture
from assembler.errors import AssemblerError, OptionError
from assembler.new import main

ROOT = Path(__file__).resolve().parents[2]


def run_its_test(folder: Path, name: str) -> None:
    """What pytest would run."""
    namespace = runpy.run_path(str(folder / "tests" / f"test_{name}.py"))
    namespace["test_logits_equal_the_reference"]()


@pytest.mark.parametrize(
    "parent",
    ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "mixtral"))],
)
def test_the_generated_test_passes(parent: str, tmp_path: Path):
    files = new_architecture("heron", parent, tmp_path / "heron")
    assert sorted(path.relative_to(tmp_path / "heron").as_posix() for path in files) == [
        "README.md",
        "conf/heron.yaml",
        "config.json",
        "tests/test_heron.py",
        "weight_maps/heron.yaml",
    ]
    run_its_test(tmp_path / "heron", "heron")
    difference = assembler.diff_architectures("heron", parent, search_path=[tmp_path / "heron"])
    assert difference.is_empty


def test_the_generated_test_fails_for_another_model(tmp_path: Path):
    new_architecture("heron", "llama", tmp_path / "heron")
    conf = tmp_path / "heron" / "conf" / "heron.yaml"
    conf.write_text(conf.read_text() + "embed: {scale: 1.5}\n")
    with pytest.raises(AssertionError, match=r"(?s)first difference: embed .*FAIL"):
        run_its_test(tmp_path / "heron", "heron")


@pytest.mark.slow
def test_as_its_readme_says(tmp_path: Path):
    """In the folder, by name, with pytest; and over random weights."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(folder: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run(tmp_path, "assembler.new", "name=heron", "from=qwen3")
    assert "next: cd heron && python -m pytest" in said
    folder = tmp_path / "heron"
    assert "1 passed" in run(folder, "pytest", "-p", "no:cacheprovider")
    run(folder, "assembler.diff", "conf=heron", "other=qwen3")
    run(folder, "assembler.memory", "conf=heron", "checkpoint=config.json", "gpu=96GiB")


def test_a_config_of_ones_own(tmp_path: Path):
    own = {"model_type": "llama", "hidden_size": 64, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(own))
    new_architecture("heron", "minicpm", tmp_path / "heron", config=tmp_path / "config.json")
    assert json.loads((tmp_path / "heron" / "config.json").read_text()) == own


def test_a_default_config_says_what_the_model_is(tmp_path: Path):
    new_architecture("heron", "qwen3", tmp_path / "heron")
    config = json.loads((tmp_path / "heron" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["model_type"] == "qwen3"
    assert "tie_word_embeddings" in config and "id2label" not in config
    assert None not in config.values()


@pytest.mark.parametrize(
    ("name", "parent", "message"),
    [
        ("Heron", "llama", "small letters"),
        ("../heron", "llama", "small letters"),
        ("qwen3", "llama", "there is a conf of that name already"),
        ("heron", "lama", "no conf named 'lama'"),
        ("heron", "./llama.yaml", "a name is inherited: llama"),
        ("heron", "minicpm", "transformers has no type 'minicpm'"),
        ("heron", "smollm2", "pass config=path/to/config.json"),
    ],
)
def test_what_cannot_begin(name: str, parent: str, message: str, tmp_path: Path):
    with pytest.raises(AssemblerError, match=message):
        new_architecture(name, parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_asks_for_what_it_lacks(tmp_path: Path):
    with pytest.raises(OptionError, match="name=heron from=qwen3"):
        main(["name=heron"])
    with pytest.raises(OptionError, match=r"unknown option 'form'\. Did you mean 'from'"):
        main(["name=heron", "form=llama"])
    with pytest.raises(OptionError, match="write it into the new conf"):
        main(["name=heron", "from=llama", "conf.layers.count=2"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="is not empty"):
        main(["name=heron", "from=llama", f"out={tmp_path / 'full'}"])
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
