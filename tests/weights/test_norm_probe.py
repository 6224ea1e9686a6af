"""The value probe: norms that hold 1 + weight, or weight, whatever the conf takes them to hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging

from assembler import coverage
from assembler.loading import assemble
from assembler.weights.norm_probe import NormKind, judge, norm_kinds, probe_norms

logging.disable_progress_bar()

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def write(model: PreTrainedModel, folder: Path, norms: dict[str, float]) -> Path:
    """Save it with norms that scale by a value around that of their name, less 1 if asked."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    torch.manual_seed(0)
    for name, value in weights.items():
        if "norm" in name:
            around = next(scale for end, scale in norms.items() if end in name)
            value.log_normal_(0.0, 0.6).mul_(around).sub_(norms.get("less", 0.0))
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def gemma(folder: Path, less: float) -> Path:
    """Norms as a trained Gemma has them: some damp channels, some scale by much."""
    scales = {"input_": 9.0, "pre_feed": 2.0, "post_": 1.5, "model.norm": 20.0, "less": less}
    return write(Gemma2ForCausalLM(Gemma2Config(**_SIZES)), folder, scales)


def llama(folder: Path, less: float, scale: float = 0.3) -> Path:
    norms = {"layernorm": scale, "model.norm": 1.8, "less": less}
    return write(LlamaForCausalLM(LlamaConfig(**_SIZES)), folder, norms)


def test_weights_less_one_of_a_gemma_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert coverage.main([f"checkpoint={gemma(tmp_path, 1.0)}", "probe=norms"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "note: values: norms with offset 1: their weights look as they should" in out
    assert "model.layers.{0-1}.post_attention_layernorm.weight (mean" in out


def test_one_that_was_added_on_disk_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = gemma(tmp_path, 0.0)
    assert coverage.main([f"checkpoint={folder}"]) == 0  # headers cannot show it
    capsys.readouterr()
    assert coverage.main([f"checkpoint={folder}", "probe=norms", "format=json"]) == 1
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["kind"], finding["severity"]) == ("values", "error")
    assert "1 was added on disk already" in finding["message"]
    assert "0.0 % below 0" in finding["message"] and "`offset: 0`" in finding["hint"]


def test_weights_as_they_are_of_a_llama_fit(tmp_path: Path):
    [finding] = probe(llama(tmp_path, 0.0))
    assert finding.severity == "note" and "look as they should" in finding.message


def test_one_that_nobody_adds_is_worth_a_note(tmp_path: Path):
    [finding] = probe(llama(tmp_path, 1.0))
    assert finding.severity == "note" and "weight less 1, which nobody adds" in finding.message
    assert "`offset: 1`" in finding.hint


def probe(folder: Path):
    found = assemble(folder)
    return probe_norms(found.plan, found.model, found.index)


def kinds(offset: int, *statistics: tuple[float, float]) -> list[NormKind]:
    return [NormKind(f"n{n}", offset, m, m, share) for n, (m, share) in enumerate(statistics)]


def test_what_trained_models_look_like():
    """SmolLM2 135M and Gemma 3 270M, each as published and with 1 taken away or added."""
    smollm2 = [(0.307, 0.016), (0.247, 0.001), (1.78, 0.003)]
    gemma3 = [
        (8.25, 0.002),
        (0.938, 0.158),
        (12.2, 0.031),
        (0.727, 0.218),
        (3.44, 0.187),
        (13.0, 0.14),
        (20.4, 0.072),
    ]
    baked = [0.0, 0.014, 0.0, 0.012, 0.0, 0.005, 0.002]
    added = [(median + 1, share) for (median, _), share in zip(gemma3, baked, strict=True)]
    assert judge(0, kinds(0, *smollm2)) == "fits"
    assert judge(1, kinds(1, *gemma3)) == "fits"
    assert judge(1, kinds(1, *added)) == "other"
    assert judge(0, kinds(0, *gemma3)) == "other"


@pytest.mark.parametrize(
    "offset, statistics",
    [
        (1, [(4.0, 0.03), (6.0, 0.0)]),  # hardly any below 0, but more than chance
        (0, [(0.1, 0.0), (0.2, 0.01)]),  # near 0 and positive
        (0, [(0.5, 0.2), (1.0, 0.0), (1.0, 0.0)]),  # one kind of three goes below 0
    ],
)
def test_what_does_not_tell(offset: int, statistics: list[tuple[float, float]]):
    assert judge(offset, kinds(offset, *statistics)) == "unclear"


@pytest.mark.parametrize("offset, value", [(0, 1.0), (1, 0.0)])
def test_untrained_norms_fit(offset: int, value: float):
    assert judge(offset, kinds(offset, (value, 0.0))) == "fits"


def test_nothing_but_norms_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = assemble(llama(tmp_path, 0.0))
    read = []
    files = type(found.index.files)
    original = files.read
    monkeypatch.setattr(
        files, "read", lambda self, info: (read.append(info), original(self, info))[1]
    )
    assert len(norm_kinds(found.plan, found.model, found.index)) == 3
    assert len(read) == 5 and all("norm" in info.name for info in read)
