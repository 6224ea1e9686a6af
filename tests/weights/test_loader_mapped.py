"""`mmap`: what lies in the file as the model needs it is not copied, and only that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from loader_harness import Watch, assert_same, load_naively, planned, watch  # noqa: F401
from torch import nn
from weights_harness import CONFIG, MAP, SIZES, decoder, save, tensors, write_map

import assembler
from assembler.blocks.parallel import TensorParallel
from assembler.errors import CheckpointError, OptionError
from assembler.llm import LLM
from assembler.llm_options import LLMOptions
from assembler.weights.execute import execute_plan, materialize, parameter_dtypes, tie_weights
from assembler.weights.index import CheckpointIndex
from assembler.weights.memory_mapping import map_parameters

MERGED = {
    f"layers.{i}.{name}.weight" for i in range(SIZES.layers) for name in ("attn.qkv", "mlp.gate_up")
}
FUSED_MAP = MAP.replace(
    "[mlp.gate_proj, mlp.up_proj]", "{from: mlp.gu, parts: [gate, up]}"
).replace(
    "[self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]",
    "{from: self_attn.qkv, parts: [q, k, v]}",
)


def load_mapped(
    model: nn.Module, weight_map, index: CheckpointIndex, dtype=torch.float32, **options: object
) -> set[str]:
    """Load, and return the names of the parameters that stayed in the file."""
    plan = planned(model, weight_map, index)
    mapped = map_parameters(plan, model, index, parameter_dtypes(model, dtype))
    materialize(model, "cpu", dtype, given=mapped)
    execute_plan(plan, model, index, mapped=mapped, **options)
    index.close()
    tie_weights(model)
    return set(mapped)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def test_all_but_the_merged_stay_in_the_file(tmp_path: Path, watch: Watch):  # noqa: F811
    model, index, done = decoder(), save(tmp_path, tensors()), []
    plan = planned(decoder(), write_map(tmp_path), index)
    mapped = load_mapped(model, write_map(tmp_path), index, progress=done.append)
    assert mapped == {name for name, _ in model.named_parameters()} - MERGED
    merged = sum(index.tensors[p.source].nbytes for p in plan.pieces if p.target in MERGED)
    assert watch.nbytes == merged
    assert sum(done) == plan.nbytes
    assert_same(values(model), load_naively(decoder(), write_map(tmp_path), index))
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_fused_on_disk_in_the_same_order_needs_no_copy(tmp_path: Path, watch):  # noqa: F811
    weights = tensors()
    for i in range(SIZES.layers):
        at = f"model.layers.{i}"
        for fused, names in (("self_attn.qkv", "qkv"), ("mlp.gu", ("gate", "up"))):
            where = fused.partition(".")[0]
            parts = [weights.pop(f"{at}.{where}.{name}_proj.weight") for name in names]
            weights[f"{at}.{fused}.weight"] = torch.cat(parts)
    weight_map, index, model = write_map(tmp_path, FUSED_MAP), save(tmp_path, weights), decoder()
    assert load_mapped(model, weight_map, index) == {name for name, _ in model.named_parameters()}
    assert watch.reads == []
    assert_same(values(model), load_naively(decoder(), weight_map, index))

    swapped = write_map(tmp_path, FUSED_MAP.replace("[q, k, v]", "[k, q, v]"), "swapped")
    model = decoder()
    assert load_mapped(model, swapped, index) == {n for n in values(model) if "attn.qkv" not in n}
    assert_same(values(model), load_naively(decoder(), swapped, index))


def test_a_cast_cannot_stay(tmp_path: Path):
    model, index = decoder(), save(tmp_path, tensors())
    assert load_mapped(model, write_map(tmp_path), index, torch.bfloat16) == set()


def test_a_slice_does_not_stay(tmp_path: Path):
    model, index = decoder(tp=TensorParallel(1, 2)), save(tmp_path, tensors())
    mapped = load_mapped(model, write_map(tmp_path), index)
    assert mapped == {name for name, _ in model.named_parameters() if "norm" in name}


def test_writing_changes_neither_the_file_nor_other_models(tmp_path: Path):
    weights, weight_map = tensors(), write_map(tmp_path)
    index = save(tmp_path, weights)
    model, other = decoder(), decoder()
    raw = (tmp_path / "model.safetensors").read_bytes()
    load_mapped(model, weight_map, index)
    load_mapped(other, weight_map, index)
    with torch.no_grad():
        model.embed.weight.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == raw
    assert torch.equal(other.embed.weight, weights["model.embed_tokens.weight"])


def test_the_map_outlives_the_index_and_the_name_of_the_file(tmp_path: Path):
    weights, model = tensors(), decoder()
    index = save(tmp_path, weights)
    load_mapped(model, write_map(tmp_path), index)
    del index
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(model.embed.weight, weights["model.embed_tokens.weight"])


def test_a_tied_head_shares_the_mapped_embedding(tmp_path: Path):
    weights, model = tensors(), decoder(tied=True)
    del weights["lm_head.weight"]
    mapped = load_mapped(model, write_map(tmp_path), save(tmp_path, weights))
    assert "embed.weight" in mapped and model.lm_head.weight is model.embed.weight
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_a_file_cut_short_is_not_mapped(tmp_path: Path):
    index = save(tmp_path, tensors())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(CheckpointError, match=r"ends at byte .*The file is incomplete"):
        load_mapped(decoder(), write_map(tmp_path), index)


# The option ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": SIZES.layers,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        **CONFIG,
    }
    weights = tensors()
    for i in range(SIZES.layers):
        at = f"model.layers.{i}"
        weights[f"{at}.post_attention_layernorm.weight"] = torch.randn(SIZES.hidden)
    save(folder, weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("mmap", ["auto", True, False])
def test_the_option_changes_what_is_read_and_no_value(mmap, llama: Path, watch: Watch):  # noqa: F811
    model = assembler.load_model(llama, mmap=mmap)
    size = sum(p.nbytes for p in model.parameters())
    merged = sum(p.nbytes for name, p in model.named_parameters() if name in MERGED)
    assert watch.nbytes == (merged if mmap else size)
    ids = torch.arange(6)[None]
    expected = assembler.logits(assembler.load_model(llama, mmap=False), ids)
    assert torch.equal(assembler.logits(model, ids), expected)


def test_mmap_true_refuses_when_nothing_can_stay(llama: Path):
    with pytest.raises(OptionError, match=r"mmap=true: no parameter .* as torch\.float16 on cpu"):
        assembler.load_model(llama, dtype=torch.float16, mmap=True)


def test_llm_passes_it_on(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("assembler.llm.checkpoint_tokenizer", lambda assembly: None)
    with pytest.raises(OptionError, match="mmap=true: no parameter"):
        LLM(llama, dtype="bfloat16", mmap=True)
    assert LLMOptions(mmap=False).mmap is False and LLMOptions().mmap == "auto"
