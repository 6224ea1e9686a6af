"""What is said about broken maps and checkpoints, word for word: the tables in `broken/`.

A table's entry is the damage and all the findings (or the error) that it must give; nothing is read
but headers. Paths in messages are those from the folder of the map and the checkpoint.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from weights_harness import MAP, decoder, save, several, tensors, write_map

from assembler.blocks.parallel import ShardDim
from assembler.errors import CheckpointError, WeightMapError
from assembler.weights.index import CheckpointIndex, read_checkpoint_index
from assembler.weights.plan import LoadPlan, plan_load
from assembler.weights.weight_map import PACKAGE_ROOT

Case = dict[str, Any]


def table(name: str) -> dict[str, Case]:
    return yaml.safe_load((Path(__file__).parent / "broken" / f"{name}.yaml").read_text())


MAPS, MISFITS = table("maps"), table("misfits")
QUANTIZED = table("quantized")
CHECKPOINTS, FOLDERS, OPERATIONS = table("checkpoints"), table("folders"), table("operations")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def portable(text: str, folder: Path) -> str:
    """A message with the paths of this machine taken out."""
    text = text.replace(f"{folder}/", "").replace(str(folder), "FOLDER")
    return text.replace(f"{PACKAGE_ROOT}/", "assembler/")


def assert_findings(plan: LoadPlan, case: Case, folder: Path) -> None:
    """All findings, word for word; those that are errors stand in the way of loading."""
    assert [portable(str(finding), folder) for finding in plan.findings] == case["findings"]
    if all(text.startswith("note: ") for text in case["findings"]):
        plan.raise_for_findings()
        return
    with pytest.raises(CheckpointError, match="does not fit the model"):
        plan.raise_for_findings()


def test_there_is_no_shortage_of_ways_to_break_things():
    assert len(CHECKPOINTS) + len(FOLDERS) + len(OPERATIONS) >= 60
    assert len(MAPS) + len(MISFITS) >= 100


@pytest.mark.parametrize("name", MAPS)
def test_maps_that_cannot_be_read(name: str, folder: Path):
    with pytest.raises(WeightMapError) as error:
        write_map(folder, MAPS[name]["map"])
    assert portable(str(error.value), folder) == MAPS[name]["error"]


@pytest.mark.parametrize("name", MISFITS)
def test_maps_that_do_not_fit_the_model(name: str, folder: Path):
    case = MISFITS[name]
    assert case["replace"] in MAP
    weight_map = write_map(folder, MAP.replace(case["replace"], case["by"]))
    assert_findings(plan_load(weight_map, decoder(), save(folder, tensors())), case, folder)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_do_not_fit_the_model(name: str, folder: Path):
    case = CHECKPOINTS[name]
    options = case.get("options", {})
    index = save(folder, damaged(tensors(qkv_bias=options.get("qkv_bias", False)), case))
    assert_findings(plan_load(write_map(folder), decoder(**options), index), case, folder)


def damaged(weights: dict[str, torch.Tensor], case: Case) -> dict[str, torch.Tensor]:
    """The tensors after what the case says is done to them."""
    old, new = case.get("rename", ("", ""))
    prefix = case.get("prefix", "")
    weights = {prefix + name.replace(old, new): value for name, value in weights.items()}
    for glob in case.get("drop", ()):
        weights = {name: value for name, value in weights.items() if not fnmatchcase(name, glob)}
    for glob, dtype in case.get("dtype", {}).items():
        for name in [name for name in weights if fnmatchcase(name, glob)]:
            weights[name] = weights[name].to(getattr(torch, dtype))
    return weights | {name: torch.zeros(shape) for name, shape in case.get("add", {}).items()}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_that_do_not_fit(name: str, folder: Path):
    case = OPERATIONS[name]
    layouts = {path: ShardDim("replicated", tuple(shape)) for path, shape in case["model"].items()}
    dtype = getattr(torch, case.get("dtype", "float32"))
    disk = {name: torch.zeros(shape, dtype=dtype) for name, shape in case["disk"].items()}
    weight_map, index = write_map(folder, case["map"]), save(folder, disk)
    assert_findings(plan_load(weight_map, several(layouts), index), case, folder)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantised_checkpoints_that_do_not_fit(name: str, folder: Path):
    case = QUANTIZED[name]
    layouts = {path: ShardDim("replicated", tuple(shape)) for path, shape in case["model"].items()}
    disk = {
        name: torch.zeros(shape, dtype=getattr(torch, dtype))
        for name, (dtype, *shape) in case["disk"].items()
    }
    weight_map = write_map(folder, case.get("map", "weights: {x: x}\n"))
    save(folder, disk)
    config = {"quantization_config": case["config"]} if "config" in case else {}
    (folder / "config.json").write_text(json.dumps(config))
    assert_findings(
        plan_load(weight_map, several(layouts), read_checkpoint_index(folder)), case, folder
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_files_that_disagree(name: str, folder: Path):
    layouts = {path: ShardDim("replicated", (rows,)) for path, rows in (("x", 2), ("y", 3))}
    weight_map = write_map(folder, "weights: {x: x, y: y}\n")
    plan = plan_load(weight_map, several(layouts), write_files(folder, FOLDERS[name]))
    assert_findings(plan, FOLDERS[name], folder)


def write_files(folder: Path, case: Case) -> CheckpointIndex:
    for file, shapes in case["files"].items():
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / file)
    if "index" in case:
        text = json.dumps({"weight_map": case["index"]})
        (folder / "model.safetensors.index.json").write_text(text)
    for file, nbytes in case.get("cut", {}).items():
        (folder / file).write_bytes((folder / file).read_bytes()[:-nbytes])
    return read_checkpoint_index(folder)
