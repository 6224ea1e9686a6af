"""Every operation of the map language, and random maps, exported from loaded ranks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from operation_cases import CASES, text_of
from random_maps import RandomMap, random_maps
from safetensors.torch import load_file
from torch import nn
from weights_harness import load_parameters, lone, save, write_map

from assembler.blocks.parallel import ShardDim, TensorParallel
from assembler.errors import WeightMapError
from assembler.weights.export_execute import LoadedParameters, execute_export
from assembler.weights.export_plan import ExportPlan, export_plan
from assembler.weights.index import CheckpointIndex
from assembler.weights.weight_map import WeightMap

ROUNDED = ("affine", "negative exp")
LOSING = ("sliced",)


def loaded_ranks(
    layout: ShardDim, weight_map: WeightMap, index: CheckpointIndex, size: int
) -> list[nn.Module]:
    models = [lone(layout, tp=TensorParallel(rank, size)) for rank in range(size)]
    for model in models:
        load_parameters(model, weight_map, index)
    return models


def exported(plan: ExportPlan, models: list[nn.Module], folder: Path) -> dict[str, torch.Tensor]:
    [file] = execute_export(plan, LoadedParameters(models), folder)
    return load_file(file)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_operations_are_exported(name: str, size: int, tmp_path: Path):
    """As the checkpoint had it: bit for bit unless the plan says that it rounds, or refuses."""
    case = CASES[name]
    size = size if case.layout.dim is not None else 1
    weight_map, index = write_map(tmp_path, text_of(case)), save(tmp_path / "in", case.disk)
    models = loaded_ranks(case.layout, weight_map, index, size)
    plan = export_plan(weight_map, models[0], like=index)
    assert any(not loss.rounds for loss in plan.losses) == (name in LOSING)
    assert any(loss.rounds for loss in plan.losses) == (name in ROUNDED)
    if name in LOSING:
        with pytest.raises(WeightMapError, match="cannot write this model back"):
            exported(plan, models, tmp_path)
        return
    found = exported(plan, models, tmp_path)
    assert set(found) == set(case.disk) - {"other.weight"}
    for source, value in found.items():
        disk = case.disk[source]
        assert torch.allclose(value, disk) if name in ROUNDED else torch.equal(value, disk)


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(random_maps())
def test_random_maps_are_exported_without_a_look_at_the_checkpoint(case: RandomMap):
    """The map and the model alone say which tensors there are and of what shape."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weight_map, index = write_map(folder, case.text), save(folder / "in", case.disk)
        models = loaded_ranks(case.layout, weight_map, index, case.ranks)
        plan = export_plan(weight_map, models[-1])
        assert plan.losses == plan.findings == ()
        found = exported(plan, models, folder)
    assert set(found) == set(case.disk)
    assert all(torch.equal(found[name], value) for name, value in case.disk.items())
