"""Quantised releases of whole models, computed beside transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from quantized_cases import fp8
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.utils import logging

import assembler
from assembler.exporting import ExportSettings, export_checkpoint
from assembler.loading import Assembly, assemble

logging.disable_progress_bar()

IDS = torch.arange(14).view(2, 7)


def quantise(folder: Path, weights: dict[str, torch.Tensor], method: dict) -> Assembly:
    """Write the tensors in place of those of a folder, and the method into its config."""
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": method}
    (folder / "config.json").write_text(json.dumps(config))
    found = assemble(folder)
    assert not found.plan.findings
    return found


def assert_same_logits(folder: Path, theirs: torch.nn.Module) -> None:
    with torch.inference_mode():
        expected = theirs(IDS).logits
        ours = assembler.logits(assembler.load_model(folder), IDS)
    torch.testing.assert_close(ours, expected, atol=3e-5, rtol=1e-4)


def test_fp8_llama_from_folder_to_folder(tmp_path: Path):
    """transformers reads the export and computes what we do from the quantised checkpoint."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "in")
    disk, _ = fp8(load_file(tmp_path / "in" / "model.safetensors"), (4, 5))
    method = {"quant_method": "fp8", "weight_block_size": [4, 5]}
    found = quantise(tmp_path / "in", disk, method)
    export_checkpoint(found, ExportSettings(tmp_path / "out", dtype=torch.float32))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert_same_logits(tmp_path / "in", theirs)


def test_mxfp4_gpt_oss(tmp_path: Path):
    """The tensors as gpt-oss publishes them, through the map of the plain release."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=0,
    )
    theirs = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = weights.pop(name).transpose(1, 2).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(119, 125, blocks.shape[:-1], dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        theirs.get_parameter(name).data.copy_(plain)
    quantise(tmp_path, weights, {"quant_method": "mxfp4"})
    assert_same_logits(tmp_path, theirs)
