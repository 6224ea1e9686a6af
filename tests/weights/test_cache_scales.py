"""Which tensors of a checkpoint are scales of an 8-bit KV cache, under every name they come by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_llama import SIZES, change_tensors, save_llama

from assembler.errors import CheckpointError, WeightMapError
from assembler.loading import assemble, load_weights
from assembler.weights.report import coverage_report
from assembler.weights.weight_map import load_weight_map

LAYERS = range(SIZES["num_hidden_layers"])
NAMES = {
    "vllm": ("k_scale", "v_scale"),
    "saved by vllm": ("attn.k_scale", "attn.v_scale"),
    "modelopt": ("k_proj.k_scale", "v_proj.v_scale"),
    "compressed-tensors": ("k_proj.output_scale", "v_proj.output_scale"),
    "hunyuan": ("k_cache.scale", "v_cache.scale"),
    "one for both": ("kv_scale", "kv_scale"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder, tokenizer=False)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((plain / file).read_bytes())
    return tmp_path


def scales(k: str = "k_scale", v: str = "v_scale", layers=LAYERS) -> dict[str, torch.Tensor]:
    """Scales of their own for each layer, of no dimension or of one."""
    at = "model.layers.{}.self_attn.{}".format
    keys = {at(n, k): torch.tensor(0.25 + n) for n in layers}
    return keys | {at(n, v): torch.tensor([0.5 + n]).bfloat16() for n in layers}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_scales_are_read_under_every_name(names, folder):
    disk = scales(*names)
    change_tensors(folder, lambda weights: weights.update(disk))
    found = assemble(folder, fp8_cache=True)
    assert not found.plan.findings and not found.plan.ignored
    assert found.plan.totals.tensors_covered == found.plan.totals.tensors
    model = load_weights(found)
    for n in LAYERS:
        block, at = model.layers[n].attn, f"model.layers.{n}.self_attn."
        assert (block.k_scale, block.v_scale) == (disk[at + names[0]], disk[at + names[1]])


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_another_cache_leaves_them_aside_and_says_why(names, folder):
    disk = scales(*names)
    change_tensors(folder, lambda weights: weights.update(disk))
    found = assemble(folder)
    assert not found.plan.findings and not found.plan.cache_scales
    assert {item.info.name for item in found.plan.ignored} == {*disk}
    [(texts, reason, _)] = coverage_report(found.plan).ignored
    assert texts.startswith("model.layers.{0-2}.self_attn.")
    assert reason == (
        "of an 8-bit KV cache; not needed: the cache is as the weights (kv_cache_dtype=auto)"
    )
    assert load_weights(found).layers[0].attn.k_scale == 1


def test_a_map_names_others(folder):
    change_tensors(folder, lambda weights: weights.update(scales("calibrated.keys", "v_scale")))
    (folder / "weight_maps").mkdir()
    mine = folder / "weight_maps" / "llama.yaml"
    mine.write_text("extends: llama\ncache_scales: {k: calibrated.keys}\n")
    plan = assemble(folder, search_path=[folder], fp8_cache=True).plan
    assert not plan.findings and len(plan.cache_scales) == 2 * len(LAYERS)
    mine.write_text("extends: llama\ncache_scales: {k: [], keys: x}\n")
    with pytest.raises(WeightMapError, match=r"llama.yaml:2: cache_scales: 'k' is the name"):
        load_weight_map("llama", [folder])
    mine.write_text("extends: llama\ncache_scales: {keys: x}\n")
    with pytest.raises(WeightMapError, match=r"cache_scales has k and v, not 'keys'"):
        load_weight_map("llama", [folder])


REFUSED = {
    "shape": (
        {"model.layers.1.self_attn.k_scale": torch.ones(2)},
        "shape: model.layers.1.self_attn.k_scale: has the shape [2]; a scale of the KV cache is "
        "one number (FOLDER/model.safetensors)",
    ),
    "dtype": (
        {"model.layers.1.self_attn.k_scale": torch.ones(1, dtype=torch.int32)},
        "dtype: model.layers.1.self_attn.k_scale: is stored as I32; a scale of the KV cache is "
        "F32, F16, BF16 (FOLDER/model.safetensors)",
    ),
    "half": (
        {"model.layers.1.self_attn.v_scale": None},
        "missing: layers.1.attn.v_scale: the checkpoint has model.layers.0.self_attn.k_scale, but "
        "no such scale for this (FOLDER/model.safetensors). kv_cache_dtype=auto needs no scales.",
    ),
    "elsewhere": (
        {"model.layers.1.mlp.k_scale": torch.ones(1)},
        "unclaimed: model.layers.1.mlp.k_scale: no rule uses it",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_a_finding(change, message, folder):
    disk = {name: value for name, value in (scales() | change).items() if value is not None}
    change_tensors(folder, lambda weights: weights.update(disk))
    with pytest.raises(CheckpointError, match="1 finding\n") as refused:
        assemble(folder, fp8_cache=True).plan.raise_for_findings()
    assert message.replace("FOLDER", str(folder)) in str(refused.value)


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_a_scale_that_is_no_positive_number_is_refused(value, folder):
    name = "model.layers.2.self_attn.v_scale"
    disk = scales() | {name: torch.tensor(value)}
    change_tensors(folder, lambda weights: weights.update(disk))
    where = re.escape(f"{name} ({folder / 'model.safetensors'}): a scale of the KV cache is a")
    with pytest.raises(CheckpointError, match=where):
        load_weights(assemble(folder, fp8_cache=True))
    load_weights(assemble(folder))  # a cache of another type does not read it
