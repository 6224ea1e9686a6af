"""verify_model: what is compared with what, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from assembler import AssemblerError, load_model, logits, verify_model
from assembler.errors import CheckpointError, OptionError, SpecError
from assembler.verifying.ids import random_ids
from assembler.verifying.reference import Reference
from assembler.verifying.tiny import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    """A tiny checkpoint and the model of transformers that it was saved from."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, write_tiny(folder, model_type="qwen3")


def test_a_folder_beside_transformers(tiny) -> None:
    report = verify_model(tiny[0])
    assert report.passed and report.difference is None and report.paged is None
    assert (report.conf, report.against) == ("qwen3", "transformers")
    assert 0 < report.dense.error <= report.dense.bound and 0.9 < report.dense.std < 1.1


def test_the_errors_are_those_of_the_logits(tiny) -> None:
    folder, reference = tiny
    config = json.loads((folder / "config.json").read_text())
    ids = random_ids(config["vocab_size"], 2, 11, config)
    with torch.no_grad():
        error = (logits(load_model(folder), ids) - reference.logits(ids)).abs().max()
    assert verify_model(folder, length=11).dense.error == pytest.approx(float(error), rel=0.2)


def test_over_pages_and_token_by_token(tiny) -> None:
    report = verify_model(tiny[0], paged=True, length=9)
    assert report.passed and report.paged is not None and report.paged.error > 0


@pytest.mark.parametrize(
    "model_type", ["gpt2", "gemma3_text", "mixtral", "opt", "gpt_oss", "deepseek_v2"]
)
def test_tiny_models_of_default_configs(model_type: str) -> None:
    report = verify_model("tiny", model_type=model_type)
    assert report.passed and report.paged is not None


@pytest.mark.parametrize("as_folder", [True, False])
def test_tiny_of_a_config(as_folder: bool, tiny, tmp_path: Path) -> None:
    config = json.loads((tiny[0] / "config.json").read_text())
    config |= {"hidden_size": 2048, "num_hidden_layers": 48, "vocab_size": 150_000}
    del config["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path if as_folder else tmp_path / "config.json"
    report = verify_model("tiny", config=path)
    assert report.passed and str(path) in report.checkpoint


def test_variants_that_the_config_leaves_out_are_named(tmp_path: Path) -> None:
    config = {"model_type": "stablelm", "hidden_size": 64, "num_attention_heads": 4}
    notes = []
    for options in ({}, {"use_parallel_residual": True, "qk_layernorm": True}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **options}))
        notes.append(verify_model("tiny", config=tmp_path, paged=False).notes)
    assert re.fullmatch(r"not compared: qk_norms \(.*yaml:\d+\), parallel \(.*", notes[0][0])
    assert notes[1] == ()


class TestAgainstAFile:
    @pytest.fixture
    def file(self, tiny, tmp_path: Path) -> Path:
        ids = random_ids(101, 1, 6, {})
        tensors = {"input_ids": ids, "logits": tiny[1].logits(ids)}
        save_file(tensors, tmp_path / "logits.safetensors")
        return tmp_path / "logits.safetensors"

    def test_equal(self, tiny, file: Path) -> None:
        report = verify_model(tiny[0], against=file)
        assert report.passed and report.against == str(file)

    def test_the_tolerance_is_that_of_the_option(self, tiny, file: Path) -> None:
        assert not verify_model(tiny[0], against=file, tolerance=1e-12).passed

    def test_different(self, tiny, file: Path) -> None:
        wrong = "conf.layers.blocks.attn.rope.style=interleaved"
        report = verify_model(tiny[0], against=file, overrides=[wrong])
        assert not report.passed and report.difference is None
        assert "against=transformers does" in report.notes[0]

    def test_needs_no_transformers(self, tiny, file: Path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        assert verify_model(tiny[0], against=file).passed

    def test_lacks_a_tensor(self, tiny, tmp_path: Path) -> None:
        save_file({"input_ids": torch.ones(1, 2)}, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match="lacks logits"):
            verify_model(tiny[0], against=tmp_path / "x.safetensors")

    def test_has_other_sizes(self, tiny, tmp_path: Path) -> None:
        tensors = {"input_ids": torch.ones(1, 2), "logits": torch.ones(1, 2, 50)}
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=r"logits \[1, 2, 50\].*\[B, L, 101\]"):
            verify_model(tiny[0], against=tmp_path / "x.safetensors")

    def test_is_not_there(self, tiny) -> None:
        with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
            verify_model(tiny[0], against="nowhere.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass config=path/to/config.json or model_type=NAME"),
        ({"config": "x.json", "model_type": "llama"}, "one of them"),
        ({"model_type": "lama"}, "no such type. Did you mean 'llama'"),
        ({"model_type": "plover"}, r"config=path/to/config\.json trust_remote_code=true"),
        ({"config": "nowhere.json"}, "config=nowhere.json: cannot be read"),
        ({"model_type": "llama", "against": "x.safetensors"}, "leave against= out"),
    ],
)
def test_what_a_tiny_model_cannot_be_made_of(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        verify_model("tiny", **options)


def test_a_config_without_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OptionError, match="names no model_type"):
        verify_model("tiny", config=tmp_path)


def test_a_config_is_for_tiny_models(tiny) -> None:
    with pytest.raises(OptionError, match="model_type= is for checkpoint=tiny"):
        verify_model(tiny[0], model_type="llama")


def test_transformers_is_not_installed(tiny, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OptionError, match=r"pip install 'model-assembler\[verify\]'"):
        verify_model(tiny[0])


def test_a_checkpoint_that_is_not_covered(own) -> None:
    own("qwen3", "layers: {blocks: {attn: {qk_norm: null}}}\n")
    with pytest.raises(CheckpointError, match=r"unclaimed: .*self_attn\.k_norm"):
        verify_model("tiny", "own", model_type="qwen3")


def test_an_architecture_that_no_conf_is_for() -> None:
    with pytest.raises(SpecError, match="codegen"):
        verify_model("tiny", model_type="codegen")


def test_weights_that_transformers_would_make_up(tiny, tmp_path: Path) -> None:
    """A checkpoint that a conf of one's own covers, and of which transformers knows half."""
    from safetensors.torch import load_file

    tensors = load_file(tiny[0] / "model.safetensors")
    renamed = {name.replace("q_proj", "query"): value for name, value in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny[0] / "config.json").read_text())
    (tmp_path / "own.yaml").write_text("defaults: [qwen3]\nweight_map: ./own_map.yaml\n")
    rule = "attn.qkv: [self_attn.query, self_attn.k_proj, self_attn.v_proj]"
    text = f"extends: qwen3\nweights:\n  layers.{{i}}:\n    {rule}\n"
    (tmp_path / "own_map.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"finds no weights for .*q_proj.*: no reference"):
        verify_model(tmp_path, tmp_path / "own.yaml")


def test_code_of_a_checkpoint_is_not_run(tiny, tmp_path: Path) -> None:
    config = json.loads((tiny[0] / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "model.safetensors").write_bytes((tiny[0] / "model.safetensors").read_bytes())
    with pytest.raises(AssemblerError, match="trust_remote_code=true"):
        verify_model(tmp_path, "qwen3")
