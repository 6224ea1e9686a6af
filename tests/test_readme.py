"""The README's worked example, taken from the page and run against transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

import assembler
from assembler.loading import assemble
from assembler.weights.report import coverage_report

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A user's folder with the two files of the example."""
    blocks = re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", README.read_text("utf-8"), re.S)
    assert [name for name, _ in blocks] == ["conf/olmo2.yaml", "weight_maps/olmo2.yaml"]
    for name, text in blocks:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def olmo2(tmp_path):
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=101,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=2e-3,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = Olmo2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3 if "norm" in name else 0.15)
    model.save_pretrained(tmp_path / "checkpoint")
    return model


def test_two_yaml_files_make_olmo2(own_folder, olmo2):
    checkpoint = own_folder / "checkpoint"
    report = coverage_report(assemble(checkpoint).plan)
    assert report.complete
    model = assembler.load_model(checkpoint)
    assert model.spec.name == "olmo2"  # detected through the user's own `matches`
    ids = torch.randint(0, 101, (2, 23), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = olmo2(ids).logits
        ours = assembler.logits(model, ids)
    assert expected.std() > 0.3
    assert (ours - expected).abs().max() <= 3e-5 * max(1.0, expected.std().item())
