"""What coverage says of the way back: which rules of a map an export cannot undo."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from command_runs import Run, refused
from tiny_llama import change_tensors

from assembler import coverage, export


@pytest.mark.parametrize("name", ["tiny", "tiny.gguf"])
def test_coverage_says_that_all_is_written_back(run: Run, tiny: Path, home: Path, name: str):
    at = f"checkpoint={home / name}"
    assert "\nwrites back: all\n" in run(coverage, at, "tp=2").out
    assert json.loads(run(coverage, at, "format=json").out)["writes_back"] == []


def test_coverage_says_what_is_not_written_back(run: Run, copy: Path, tmp_path: Path):
    maps, confs = tmp_path / "weight_maps", tmp_path / "conf"
    maps.mkdir()
    confs.mkdir()
    (confs / "sliced.yaml").write_text("defaults: [llama, _self_]\nweight_map: sliced\n")
    (maps / "sliced.yaml").write_text(
        "extends: llama\nweights:\n  norm: {from: model.norm, affine: {offset: 1}}\n"
        "  layers.{i}: {mlp_norm: {from: post_attention_layernorm, slice: 2}}\n"
    )

    def widen(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "post_attention" in name]:
            weights[name] = torch.cat([torch.zeros(2), weights[name]])

    change_tensors(copy, widen)
    at = (f"checkpoint={copy}", "conf=sliced")
    lines = [line for line in run(coverage, *at).out.splitlines() if "writes back" in line]
    norm, rows = json.loads(run(coverage, *at, "format=json").out)["writes_back"]
    assert re.fullmatch(
        r"layers\.\{i\}\.mlp_norm ← model\.layers\.\{i\}\.post_attention_layernorm "
        r"\(.*sliced\.yaml:4\): model\.layers\.\{0-2\}\.post_attention_layernorm\.weight: "
        r"the model holds 94\.1% of its values",
        norm,
    ), norm
    assert "norm ← model.norm" in rows and "rounding" in rows
    assert len(lines) == 2 and all(line.startswith("writes back: not: ") for line in lines)
    refused(run(export, *at, "out=x"), "cannot write this model back:", "94.1% of its values")
