"""The inverse of a map: what it writes, what it loses, and from which ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from weights_harness import MAP, SIZES, Leaf, Sizes, decoder, nest, save, tensors, write_map

from assembler.blocks.parallel import ShardDim, TensorParallel
from assembler.errors import CheckpointError, WeightMapError
from assembler.weights.execute import execute_plan, materialize
from assembler.weights.export_execute import (
    CheckpointParameters,
    LoadedParameters,
    execute_export,
)
from assembler.weights.export_plan import ExportPlan, export_plan
from assembler.weights.plan import plan_load
from assembler.weights.weight_map import WeightMap


def round_trip(
    folder: Path, weight_map: WeightMap, model: torch.nn.Module, weights: dict[str, torch.Tensor]
) -> tuple[ExportPlan, dict[str, torch.Tensor]]:
    """Stream a checkpoint through the map and back; the plan and what was written."""
    index = save(folder / "in", weights)
    load = plan_load(weight_map, model, index)
    load.raise_for_findings()
    plan = export_plan(weight_map, model, load.naming, like=index)
    out = folder / "out"
    out.mkdir()
    [file] = execute_export(plan, CheckpointParameters(load, index), out)
    return plan, load_file(file)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def lone(shape: tuple[int, ...], leaf: str = "weight") -> torch.nn.Module:
    """A model of one module `x` with one parameter, on meta."""
    root = torch.nn.Module()
    with torch.device("meta"):
        nest(root, "x", Leaf(ShardDim("replicated", shape), leaf))
    return root


def test_names_shapes_and_types_come_back(tmp_path: Path):
    weights = tensors(qkv_bias=True)
    weights["model.norm.weight"] = weights["model.norm.weight"].double()
    name = "model.layers.1.self_attn.k_proj.weight"
    weights[name] = weights[name].half()  # q and v of the same parameter stay float32
    plan, found = round_trip(tmp_path, write_map(tmp_path), decoder(qkv_bias=True), weights)
    assert_equal(found, weights)
    assert plan.losses == plan.findings == ()


def test_a_prefix_comes_back(tmp_path: Path):
    weights = {f"language_model.{name}": value for name, value in tensors().items()}
    assert_equal(round_trip(tmp_path, write_map(tmp_path), decoder(), weights)[1], weights)


def test_without_a_checkpoint_the_map_names_the_tensors(tmp_path: Path):
    plan = export_plan(write_map(tmp_path), decoder(tied=True))
    expected = tensors()
    del expected["lm_head.weight"]  # tied: not written a second time
    assert {t.name: t.shape for t in plan.tensors} == {
        name: tuple(value.shape) for name, value in expected.items()
    }
    assert [t.name for t in plan.tensors[:2]] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
    ]


def test_a_tied_head_on_disk_is_not_written_twice(tmp_path: Path):
    weights = tensors()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    _, found = round_trip(tmp_path, write_map(tmp_path), decoder(tied=True), weights)
    del weights["lm_head.weight"]
    assert_equal(found, weights)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("fused", [False, True])
def test_ranks_of_one_process(tmp_path: Path, size: int, fused: bool):
    """At 4 ranks each of the 2 key heads is held twice and written once."""
    sizes, text = Sizes(vocab=20), MAP
    weights = tensors(sizes)
    if fused:
        text = text.replace(
            "[self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]",
            "{from: self_attn.qkv, parts: [q, k, v], per: kv_head}",
        )
        for i in range(sizes.layers):
            at = f"model.layers.{i}.self_attn"
            parts = [weights.pop(f"{at}.{name}_proj.weight") for name in "qkv"]
            blocks = [part.unflatten(0, (sizes.kv_heads, -1)) for part in parts]
            weights[f"{at}.qkv.weight"] = torch.cat(blocks, 1).flatten(0, 1)
    weight_map, index = write_map(tmp_path, text), save(tmp_path / "in", weights)
    models = [decoder(sizes, tp=TensorParallel(rank, size)) for rank in range(size)]
    for model in models:
        load = plan_load(weight_map, model, index)
        materialize(model, "cpu", torch.float32)
        execute_plan(load, model, index)
    plan = export_plan(weight_map, models[-1])
    assert plan.size == size
    [file] = execute_export(plan, LoadedParameters(models), tmp_path)
    assert_equal(load_file(file), weights)


def test_a_rule_that_drops_rows_cannot_be_written_back(tmp_path: Path):
    text = "weights: {x: {from: y, slice: 2}}"
    weight_map, model = write_map(tmp_path, text), lone((3, 4))
    index = save(tmp_path / "in", {"y.weight": torch.randn(5, 4)})
    plan = export_plan(weight_map, model, like=index)
    [loss] = plan.losses
    assert (loss.rule, loss.tensors, loss.rounds) == ("x ← y", "y.weight", False)
    assert loss.reason == "the model holds 60.0% of its values"
    with pytest.raises(
        WeightMapError, match=r"cannot write.*\n  x ← y \(.*tiny.yaml:1\): y.weight"
    ):
        execute_export(
            plan, CheckpointParameters(plan_load(weight_map, model, index), index), tmp_path
        )
    assert not (tmp_path / "model.safetensors").exists()


def test_a_rule_that_computes_is_listed_and_written(tmp_path: Path):
    weights = {"y.weight": torch.randn(7).bfloat16()}
    text = "weights: {x: {from: y, affine: {offset: 1}}}"
    plan, found = round_trip(tmp_path, write_map(tmp_path, text), lone((7,)), weights)
    [loss] = plan.losses
    assert loss.rounds and "rounding" in loss.reason
    torch.testing.assert_close(found["y.weight"], weights["y.weight"])


def test_padding_is_taken_off_and_has_to_be_what_it_was(tmp_path: Path):
    weights = {"y.weight": torch.randn(3, 4)}
    weight_map, model = write_map(tmp_path, "weights: {x: {from: y, pad: 0}}"), lone((5, 4))
    _, found = round_trip(tmp_path, weight_map, model, weights)
    assert_equal(found, weights)
    index = save(tmp_path / "in", weights)
    plan = export_plan(weight_map, model, like=index)
    materialize(model, "cpu", torch.float32)
    execute_plan(plan_load(weight_map, model, index), model, index)
    model.x.weight.data[4, 1] = 2.0
    with pytest.raises(CheckpointError, match=r"x.weight was filled with 0 .* other values now"):
        execute_export(plan, LoadedParameters([model]), tmp_path)


def test_what_a_rule_fills_has_no_tensor(tmp_path: Path):
    root = decoder(SIZES)
    nest(root, "extra", Leaf(ShardDim("replicated", (3,)), "bias"))
    text = MAP.replace("  norm: model.norm\n", "  norm: model.norm\n  extra: {fill: 1}\n")
    _, found = round_trip(tmp_path, write_map(tmp_path, text), root, tensors())
    assert_equal(found, tensors())


def test_the_alternative_that_was_read_is_written(tmp_path: Path):
    weight_map = write_map(tmp_path, "weights: {x: {any: [new, old]}}")
    weights = {"old.weight": torch.randn(2, 3)}
    assert_equal(round_trip(tmp_path, weight_map, lone((2, 3)), weights)[1], weights)
    assert [t.name for t in export_plan(weight_map, lone((2, 3))).tensors] == ["new.weight"]


@pytest.mark.parametrize("rule", ["{from: 'w.{e}'}", "{from: 'w.{e}', transpose: true}"])
def test_a_stack_comes_apart(tmp_path: Path, rule: str):
    weight_map = write_map(tmp_path, f"weights: {{x: {rule}}}")
    shape = (3, 5) if "transpose" in rule else (5, 3)
    weights = {f"w.{e}.weight": torch.randn(shape) for e in range(4)}
    assert_equal(round_trip(tmp_path, weight_map, lone((4, 5, 3)), weights)[1], weights)


def test_experts_that_the_model_keeps_apart_are_stacked_again(tmp_path: Path):
    root = torch.nn.Module()
    with torch.device("meta"):
        for e in range(3):
            nest(root, f"experts.{e}", Leaf(ShardDim("replicated", (5, 2))))
    weight_map = write_map(tmp_path, "weights:\n  experts.{e}: {from: all, unstack: e}\n")
    weights = {"all.weight": torch.randn(3, 5, 2)}
    assert_equal(round_trip(tmp_path, weight_map, root, weights)[1], weights)


def test_a_kept_type_is_not_converted(tmp_path: Path):
    weight_map = write_map(tmp_path, "weights: {x: {from: y, dtype: float32}}")
    plan = export_plan(weight_map, lone((3,))).with_dtype(torch.bfloat16)
    assert plan.tensors[0].dtype == torch.float32
    plain = export_plan(write_map(tmp_path, "weights: {x: y}"), lone((3,)))
    assert plain.with_dtype(torch.bfloat16).tensors[0].dtype == torch.bfloat16


def test_a_map_of_another_model_is_refused_with_all_reasons(tmp_path: Path):
    text = MAP.replace("mlp.down: mlp.down_proj", "mlp.dwn: mlp.down_proj")
    text = text.replace("[attn.o, mlp.down]", "[attn.o]")
    plan = export_plan(write_map(tmp_path, text), decoder())
    with pytest.raises(WeightMapError) as error:
        plan.raise_for_findings()
    assert "missing: layers.{0-2}.mlp.down.weight: no rule" in str(error.value)
    assert "unknown_target: layers.{i}.mlp.dwn" in str(error.value)
