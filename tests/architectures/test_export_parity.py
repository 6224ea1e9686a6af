"""Every architecture goes back to disk bit for bit, and transformers loads the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from cases import CASES, Case, named, sweep
from minicpm_reference import write_minicpm
from safetensors.torch import load_file
from tiny_checkpoints import make_checkpoint, model_class, reference_logits, token_ids
from torch import nn

import assembler
from assembler.blocks.parallel import TensorParallel
from assembler.exporting import ExportSettings, export_checkpoint, export_model
from assembler.loading import assemble, load_weights
from assembler.weights.weight_map import load_weight_map


def assert_same_tensors(found: Path, expected: Path) -> None:
    """Names, shapes, types and every bit."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name


def in_memory_of_its_own(model: nn.Module) -> nn.Module:
    """`model` with its weights where torch would put them, and no longer in the file.

    A matrix times a vector (Qwen2-MoE's gate of the shared expert) is added up in another order
    where the weights do not begin at a multiple of 16 bytes, as in a file they need not: that is a
    difference of up to 1.2e-6 between models of the same weights.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.mark.parametrize("case", sweep())
def test_a_checkpoint_comes_back_bit_for_bit(case: Case, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    reference = make_checkpoint(case, source)
    exported = export_checkpoint(assemble(source), ExportSettings(out))
    assert exported.plan.losses == exported.plan.findings == exported.left_out == ()
    assert bool(exported.copied) == bool(case.extra_tensors or case.name.endswith("-multimodal"))
    assert_same_tensors(out, source)
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    model, info = model_class(case).from_pretrained(
        out, output_loading_info=True, attn_implementation=case.attention, dtype="auto"
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    ours = reference_logits(in_memory_of_its_own(model).eval(), token_ids())
    assert torch.equal(ours, reference_logits(reference, token_ids()))


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", sweep())
def test_the_ranks_together_write_what_they_read(case: Case, size: int, tmp_path: Path) -> None:
    """Heads, rows and columns come back from the ranks that hold them, replicated ones once."""
    source, out = tmp_path / "source", tmp_path / "out"
    make_checkpoint(case, source)
    ranks = [assemble(source, tp=TensorParallel(rank, size)) for rank in range(size)]
    models = [load_weights(rank) for rank in ranks]
    export_model(ranks[0], models, ExportSettings(out))
    assert_same_tensors(out, source)


@pytest.mark.parametrize("tied", [True, False])
def test_minicpm_comes_back_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_minicpm(source, tie_word_embeddings=tied)
    (source / "configuration_minicpm.py").write_text("# code of its own")
    export_checkpoint(assemble(source), ExportSettings(out))
    assert_same_tensors(out, source)
    assert (out / "configuration_minicpm.py").read_text() == "# code of its own"


def test_another_map_writes_its_own_names(tmp_path: Path) -> None:
    """Phi-3 fuses what Llama keeps apart; the same model under Llama's names."""
    source, out = tmp_path / "source", tmp_path / "out"
    make_checkpoint(named("phi3-window-partial"), source)
    export_checkpoint(assemble(source), ExportSettings(out), load_weight_map("llama"))
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (source, out))
    at = "model.layers.1"
    for fused, parts in (
        ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        joined = torch.cat([ours.pop(f"{at}.{part}.weight") for part in parts])
        assert torch.equal(joined, theirs[f"{at}.{fused}.weight"])
    assert torch.equal(ours["lm_head.weight"], theirs["lm_head.weight"])


def test_what_was_changed_in_memory_is_written(tmp_path: Path) -> None:
    """The module of a tied bfloat16 model, trained on, in its own type; nothing twice."""
    source, out = tmp_path / "source", tmp_path / "out"
    reference = make_checkpoint(named("qwen2-tied"), source)
    assembly = assemble(source)
    model = load_weights(assembly, torch.bfloat16)
    with torch.no_grad():
        model.embed.weight.mul_(2)
    export_model(assembly, [model], ExportSettings(out))
    found, expected = load_file(out / "model.safetensors"), reference.state_dict()
    assert set(found) == set(expected) - {"lm_head.weight"}
    for name, value in found.items():
        factor = 2 if name == "model.embed_tokens.weight" else 1
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, factor * expected[name].bfloat16()), name
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_second_export_equals_the_first(tmp_path: Path) -> None:
    """What was exported is itself a checkpoint: shards, another type, then back into one file."""
    source, shards, out = (tmp_path / name for name in ("source", "shards", "out"))
    make_checkpoint(CASES[0], source)
    export_checkpoint(assemble(source), ExportSettings(shards, max_shard_size=20_000))
    assert len(list(shards.glob("model-*-of-*.safetensors"))) > 3
    assert assemble(shards).plan.findings == ()
    export_checkpoint(assemble(shards), ExportSettings(out))
    assert_same_tensors(out, source)
    ids = token_ids()
    logits = [assembler.logits(assembler.load_model(folder), ids) for folder in (source, shards)]
    assert torch.equal(*logits)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(shards, dtype="auto")
    torch.testing.assert_close(reference_logits(theirs, ids), logits[0], rtol=0, atol=3e-5)
