"""Carrying an export out: shards, conversions, and how much is held at a time."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from weights_harness import decoder, lone, save, tensors, write_map

from assembler.blocks.parallel import ShardDim
from assembler.errors import CheckpointError
from assembler.weights.execute import materialize
from assembler.weights.export_execute import (
    CheckpointParameters,
    LoadedParameters,
    execute_export,
    split_shards,
)
from assembler.weights.export_plan import ExportTensor, export_plan
from assembler.weights.plan import plan_load


def test_a_value_that_does_not_fit_the_type_is_refused(tmp_path: Path):
    model = lone(ShardDim("replicated", (3,)))
    materialize(model, "cpu", torch.float32)
    model.x.weight.data[:] = torch.tensor([1.0, float("inf"), 7e4])
    plan = export_plan(write_map(tmp_path, "weights: {x: y}"), model)
    execute_export(plan.with_dtype(torch.bfloat16), LoadedParameters([model]), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"'y.weight' has values up to 7e\+04, more than float16"
    ):
        execute_export(plan.with_dtype(torch.float16), LoadedParameters([model]), tmp_path)


def test_shards_hold_at_most_what_they_may(tmp_path: Path):
    weights = tensors()
    index = save(tmp_path / "in", weights)
    weight_map, model = write_map(tmp_path), decoder()
    load = plan_load(weight_map, model, index)
    plan = export_plan(weight_map, model, like=index)
    source = CheckpointParameters(load, index)
    seen: list[int] = []
    out = tmp_path / "out"
    out.mkdir()
    *files, last = execute_export(plan, source, out, max_shard_size=2000, progress=seen.append)
    assert last.name == "model.safetensors.index.json"
    assert sum(seen) == plan.nbytes == sum(v.nbytes for v in weights.values())
    content = json.loads(last.read_text())
    assert content["metadata"] == {"total_size": plan.nbytes}
    found = {}
    for file in files:
        shard = load_file(file)
        assert len(shard) == 1 or sum(v.nbytes for v in shard.values()) <= 2000
        assert all(content["weight_map"][name] == file.name for name in shard)
        found |= shard
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_one_parameter_at_a_time_is_held(tmp_path: Path):
    index = save(tmp_path / "in", tensors())
    load = plan_load(write_map(tmp_path), decoder(), index)
    source = CheckpointParameters(load, index)
    first = weakref.ref(source.parameter(0, "layers.0.attn.qkv.weight"))
    assert source.parameter(0, "layers.0.attn.qkv.weight") is first()
    source.parameter(0, "layers.1.attn.qkv.weight")
    assert first() is None


def test_a_tensor_larger_than_a_shard_has_one_to_itself():
    sizes = [3, 9, 2, 2, 2]
    plan = [ExportTensor(str(n), (size,), torch.int8) for n, size in enumerate(sizes)]
    shards = split_shards(plan, 4)
    assert [[t.name for t in shard] for shard in shards] == [["0"], ["1"], ["2", "3"], ["4"]]
