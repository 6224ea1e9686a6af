"""A DeepSeek-V3 as it is released: FP8 in blocks, and a layer for multi-token prediction."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from cases import named
from safetensors.torch import load_file, save_file
from tiny_checkpoints import make_checkpoint, reference_logits, token_ids

import assembler
from assembler.blocks.parallel import TensorParallel
from assembler.loading import assemble

BLOCK = 11  # rows and columns with one scale; no size of the tiny model is a multiple of it
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


def test_the_release_computes_what_its_dequantised_weights_do(tmp_path: Path) -> None:
    reference = make_checkpoint(named("deepseek_v3-groups-yarn"), tmp_path)
    release = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        release[name] = value
        if name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight")):
            release[name], release[f"{name}_scale_inv"] = _to_fp8(value)
    values = {name: _dequantised(release, name) for name in release if "scale_inv" not in name}
    save_file(values, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference = type(reference).from_pretrained(tmp_path, attn_implementation="eager")
    expected = reference_logits(reference.eval(), token_ids())

    last = {name: value for name, value in release.items() if ".layers.2." in name}
    release |= {n.replace(".layers.2.", ".layers.61."): v.clone() for n, v in last.items()}
    release["model.layers.61.eh_proj.weight"] = torch.ones(48, 96)
    save_file(release, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"quantization_config": QUANTIZATION, "num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))

    for rank in range(2):
        assert assemble(tmp_path, tp=TensorParallel(rank, 2)).plan.findings == ()
    ignored = assemble(tmp_path).plan.ignored
    assert {entry.info.name.split(".")[2] for entry in ignored} == {"61"}
    ours = assembler.logits(assembler.load_model(tmp_path), token_ids())
    assert (ours - expected).abs().max() < 3e-5


def _to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values and the scale of each block that its largest value needs."""
    height, width = (-(-size // BLOCK) for size in weight.shape)
    padded = torch.zeros(height * BLOCK, width * BLOCK)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    scales = padded.view(height, BLOCK, width, BLOCK).abs().amax(dim=(1, 3)) / 448
    return (weight / _spread(scales, weight.shape)).to(torch.float8_e4m3fn), scales


def _spread(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A scale for each weight."""
    each = scales.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return each[: shape[0], : shape[1]]


def _dequantised(release: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    value, scales = release[name], release.get(f"{name}_scale_inv")
    return value if scales is None else value.float() * _spread(scales, value.shape)
