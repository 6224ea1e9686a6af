"""Experts: tensors stacked by an index that only the right side of a rule names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from weights_harness import Leaf, kinds, nest, save, write_map

from assembler.blocks.parallel import Part, ShardDim
from assembler.errors import CheckpointError
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.pattern import Pattern
from assembler.weights.plan import plan_load
from assembler.weights.report import coverage_report

EXPERTS_MAP = """\
weights:
  layers.{i}:
    from: model.layers.{i}
    moe.experts: {from: "mlp.experts.{e}", gate_up: [w1, w3], down: w2}
tp: {column: [moe.experts.gate_up], row: [moe.experts.down]}
"""
EXPERTS, WIDE, HIDDEN = 4, 6, 5


def experts_model(experts: int = EXPERTS, layers: int = 2) -> nn.Module:
    root = nn.Module()
    gate_up = ShardDim(
        "column", (experts, 2 * WIDE, HIDDEN), 1, (Part("gate", WIDE), Part("up", WIDE))
    )
    down = ShardDim("row", (experts, HIDDEN, WIDE), 2, (Part("in", WIDE),))
    with torch.device("meta"):
        for i in range(layers):
            nest(root, f"layers.{i}.moe.experts.gate_up", Leaf(gate_up))
            nest(root, f"layers.{i}.moe.experts.down", Leaf(down))
    return root


def experts_on_disk(experts: range | tuple[int, ...] = range(EXPERTS)) -> dict[str, torch.Tensor]:
    shapes = {"w1": (WIDE, HIDDEN), "w3": (WIDE, HIDDEN), "w2": (HIDDEN, WIDE)}
    return {
        f"model.layers.{i}.mlp.experts.{e}.{name}.weight": torch.randn(shape)
        for i in range(2)
        for e in experts
        for name, shape in shapes.items()
    }


def test_experts_are_stacked(tmp_path: Path):
    weight_map = write_map(tmp_path, EXPERTS_MAP)
    plan = plan_load(weight_map, experts_model(), save(tmp_path, experts_on_disk()))
    assert not plan.findings
    [up] = [p for p in plan.pieces if p.source == "model.layers.1.mlp.experts.3.w3.weight"]
    assert [(s.dim, s.start, s.stop) for s in up.target_slice] == [(0, 3, 4), (1, WIDE, 2 * WIDE)]
    assert up.shape == (1, WIDE, HIDDEN)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ((0, 1, 2, 7), r"numbered 0-3; the checkpoint has 0-2,7 and lacks 3"),
        ((0, 2, 3), r"the checkpoint has 0,2-3 and lacks 1"),
        ((1, 2, 3, 4), r"the checkpoint has 1-4 and lacks 0"),
    ],
)
def test_experts_with_gaps(experts: tuple[int, ...], message: str, tmp_path: Path):
    weight_map = write_map(tmp_path, EXPERTS_MAP)
    plan = plan_load(weight_map, experts_model(), save(tmp_path, experts_on_disk(experts)))
    assert {kind for kind, _ in kinds(plan)} == {"missing"}
    assert ("missing", "layers.{0-1}.moe.experts.down.weight") in kinds(plan)
    with pytest.raises(CheckpointError, match=message):
        plan.raise_for_findings()


def test_more_experts_than_the_model_has(tmp_path: Path):
    weight_map = write_map(tmp_path, EXPERTS_MAP)
    plan = plan_load(weight_map, experts_model(), save(tmp_path, experts_on_disk(range(6))))
    assert kinds(plan) == [
        ("unclaimed", f"model.layers.{{0-1}}.mlp.experts.{{4-5}}.{name}.weight")
        for name in ("w1", "w2", "w3")
    ]
    assert "holds only 4" in plan.findings[0].message


def test_all_up_projections_missing_is_half_merged(tmp_path: Path):
    weights = {k: v for k, v in experts_on_disk().items() if ".w3." not in k}
    plan = plan_load(write_map(tmp_path, EXPERTS_MAP), experts_model(), save(tmp_path, weights))
    assert kinds(plan) == [("half_merged", "layers.{0-1}.moe.experts.gate_up.weight")]
    assert "experts.{e}.w3.weight" in plan.findings[0].message


def test_the_biases_of_split_rows_are_whole(tmp_path: Path):
    """`tp: row` splits the columns of all experts; their biases are on every rank."""
    root = nn.Module()
    with torch.device("meta"):
        bias = ShardDim("replicated", (EXPERTS, HIDDEN))
        nest(root, "experts.down", Leaf(bias, leaf="bias"))
    weight_map = write_map(
        tmp_path, "weights: {experts.down: experts.w2}\ntp: {row: [experts.down]}\n"
    )
    index = save(tmp_path, {"experts.w2.bias": torch.randn(EXPERTS, HIDDEN)})
    assert plan_load(weight_map, root, index).findings == ()


def many_experts(layers: int, experts: int) -> CheckpointIndex:
    """Headers of a large mixture of experts that no file stands behind."""
    shapes = {"w1": (WIDE, HIDDEN), "w3": (WIDE, HIDDEN), "w2": (HIDDEN, WIDE)}
    names = [
        (f"model.layers.{i}.mlp.experts.{e}.{name}.weight", shape)
        for i in range(layers)
        for e in range(experts)
        for name, shape in shapes.items()
    ]
    infos = {
        name: TensorInfo(name, shape, "BF16", Path("a.safetensors"), 60 * n, 60)
        for n, (name, shape) in enumerate(names)
    }
    return CheckpointIndex(Path(), "safetensors", infos, {}, {})


def test_a_plan_of_many_experts(tmp_path: Path):
    index = many_experts(30, 128)
    plan = plan_load(write_map(tmp_path, EXPERTS_MAP), experts_model(128, 30), index)
    assert not plan.findings and len(plan.pieces) == len(index.tensors) == 11_520


@pytest.mark.parametrize("damage", ["none", "every tensor unknown"])
def test_the_work_of_a_plan_grows_with_the_checkpoint(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Names filled in and matched: with four times the tensors no more than four times as many."""
    calls: list[str] = []
    for method in ("fill", "match"):
        plain = getattr(Pattern, method)
        monkeypatch.setattr(
            Pattern, method, lambda *a, plain=plain: (calls.append(""), plain(*a))[1]
        )
    text = EXPERTS_MAP.replace("w2", "w9") if damage != "none" else EXPERTS_MAP
    text = text.replace("model.layers", "other.layers") if damage != "none" else text
    weight_map, counts = write_map(tmp_path, text), []
    for experts in (32, 128):
        calls.clear()
        coverage_report(plan_load(weight_map, experts_model(experts, 8), many_experts(8, experts)))
        counts.append(len(calls))
    assert 0 < counts[1] <= 4 * counts[0]
