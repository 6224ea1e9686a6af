"""Equations that read well and cannot be computed: the one to blame is named, at its line."""

import json
from pathlib import Path

import pytest
import torch
from tiny_llama import save_llama

import assembler
from assembler.errors import WiringError
from assembler.loading import load_model
from assembler.model.dry_run import blaming_equations, check_equations

HEAD = "wiring:\n  - x = layers(embed(tokens))\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_llama(tmp_path)
    return tmp_path


def conf(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text("defaults: [llama, _self_]\nweight_map: llama\n" + text)
    return path


def test_a_norm_of_logits_is_blamed_wherever_the_model_runs(folder: Path):
    path = conf(folder, HEAD + "  - logits = norm(lm_head(x))\n")
    place = r"mine\.yaml:5: this equation cannot be computed: norm: "
    with pytest.raises(WiringError, match=place) as caught:
        assembler.logits(load_model(folder, path), torch.tensor([[1, 2]]))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(WiringError, match=place):
        assembler.LLM(folder, conf=path).generate("Hi", use_tqdm=False)
    with pytest.raises(WiringError, match=place):
        assembler.memory_use(folder, path)


def test_a_layer_is_blamed_at_its_line(folder: Path):
    layers = "layers:\n  blocks: {side: {block: Linear, out_size: 7}}\n  wiring:\n"
    lines = (
        "    - x = x + attn(attn_norm(x))\n    - x = x + side(x)\n    - x = x + mlp(mlp_norm(x))\n"
    )
    spec = assembler.load_spec(
        conf(folder, layers + lines), {**_config(folder), "num_hidden_layers": 40}
    )
    with pytest.raises(WiringError, match=r"mine\.yaml:7: this equation cannot be computed: "):
        check_equations(assembler.build_model(spec, rewrites="none"), spec)


def test_logits_of_another_width(folder: Path):
    narrow = "out: {block: Linear, in_size: 260, out_size: 7}\n"
    path = conf(folder, narrow + HEAD + "  - logits = out(lm_head(norm(x)))\n")
    spec = assembler.load_spec(path, _config(folder))
    with pytest.raises(WiringError, match=r"mine\.yaml:6: .* gives logits of width 7, .* 260"):
        check_equations(assembler.build_model(spec, rewrites="none"), spec)


def test_what_is_not_the_equations_fault_is_raised_as_it_is(folder: Path):
    spec = assembler.load_spec("llama", _config(folder))
    with pytest.raises(RuntimeError, match="another reason"), blaming_equations(spec):
        raise RuntimeError("another reason")
    check_equations(assembler.build_model(spec), spec)


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
