"""From an assembled model back to a folder of the Hugging Face hub, the inverse of `loading`.

`export_checkpoint` streams: it reads, rearranges and writes one parameter at a time and never holds
the model. `export_model` writes modules that are loaded already, with the values they have by now.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import nn

from assembler.errors import CheckpointError, OptionError, WeightMapError
from assembler.export_files import copy_files, write_config, write_gguf_files
from assembler.loading import Assembly
from assembler.output_folder import check_free, output_folder
from assembler.weights.execute import check_tie
from assembler.weights.export_execute import (
    CheckpointParameters,
    LoadedParameters,
    ParameterSource,
    execute_export,
)
from assembler.weights.export_plan import ExportPlan, export_plan
from assembler.weights.index import TensorInfo
from assembler.weights.tensor_data import TORCH_DTYPES
from assembler.weights.weight_map import WeightMap, load_weight_map
from assembler.weights.write_back import find_losses, fold_all, pieces_by_tensor

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class ExportSettings:
    """How a folder is written, whatever is written."""

    out: Path  # appears when all is in it
    dtype: torch.dtype | None = None  # of the tensors; None keeps theirs
    max_shard_size: int = 5 * 10**9  # bytes of one weight file, as transformers has it
    overwrite: bool = False  # replace a model that is at `out`


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    plan: ExportPlan
    weight_files: int
    copied: tuple[str, ...] = ()  # tensors that the map ignores, folded over layers, with reasons
    left_out: tuple[str, ...] = ()  # what the checkpoint has and the folder has not, likewise


def export_checkpoint(
    assembly: Assembly,
    settings: ExportSettings,
    weight_map: WeightMap | None = None,
    *,
    progress: Progress | None = None,
) -> Exported:
    """Write a checkpoint as a folder of the Hub, without loading it as a whole.

    Through the map it was read with, every tensor comes out bit for bit, and the tensors that the
    map ignores are copied. Through another, those that map names are written and nothing else.

    Args:
        assembly: of `assemble(checkpoint)`.
        settings: where and how. `dtype=None` means the checkpoint's own types, the widest of them
            where the map is another (float32 for GGUF files).
        weight_map: the map to write with; None is the one that the conf names.
        progress: called with (bytes written, bytes in all).

    Raises:
        AssemblerError: the checkpoint does not load, the map cannot write it back, `out` is taken
            or there is no room. Nothing is left behind.
    """
    load, index = assembly.plan, assembly.index
    assert load is not None and index is not None, "assemble the model with its weights"
    _check_out(settings, assembly.path)
    load.raise_for_findings()
    plan = _plan(assembly, assembly.model, weight_map)
    for tie in load.ties:
        check_tie(tie, index)
    exported = _write(assembly, settings, plan, CheckpointParameters(load, index), progress)
    index.close()
    return exported


def export_model(
    assembly: Assembly,
    models_by_rank: Sequence[nn.Module],
    settings: ExportSettings,
    weight_map: WeightMap | None = None,
) -> Exported:
    """Write loaded modules, with the values they have by now.

    Args:
        assembly: what the modules were made with; gives the map, the config and the tokenizer.
        models_by_rank: the module of each tensor-parallel rank, in order; one where there is one.
        settings: where and how. `dtype=None` means the parameters' own types.
        weight_map: the map to write with; None is the one that the conf names.

    Raises:
        AssemblerError: as `export_checkpoint`.
    """
    size = models_by_rank[0].tp.size
    assert len(models_by_rank) == size, f"{len(models_by_rank)} modules for {size} ranks"
    _check_out(settings, assembly.path)
    plan = _plan(assembly, models_by_rank[0], weight_map).with_dtypes_of(models_by_rank[0])
    return _write(assembly, settings, plan, LoadedParameters(models_by_rank, assembly.index), None)


def find_losses_of(ranks: Sequence[Assembly]) -> tuple[str, ...]:
    """Why an export of a checkpoint that loads would not be exact, from its headers alone.

    Args:
        ranks: the assembly of each tensor-parallel rank, in order; one where there is one.
    """
    first = ranks[0]
    assert first.weight_map is not None and first.index is not None
    if first.index.format == "gguf":  # written with the Hub's names
        plan = _plan(first, first.model, None)
        return tuple(map(str, (*plan.findings, *plan.losses)))
    pieces = pieces_by_tensor([rank.plan.pieces for rank in ranks if rank.plan is not None])
    return tuple(map(str, find_losses(first.weight_map, pieces)))


def _plan(assembly: Assembly, model: nn.Module, weight_map: WeightMap | None) -> ExportPlan:
    """What to write: what the map makes of the model, and what the map itself ignores."""
    weight_map = weight_map or load_weight_map(assembly.hub_map, assembly.roots)
    if weight_map.config is not None:
        raise WeightMapError(
            f"the weight map '{weight_map.name}' is for the names of GGUF files; an export writes "
            f"safetensors: choose another, such as '{assembly.hub_map}'"
        )
    load, own = assembly.plan, assembly.weight_map
    if load is None or own is None:
        return export_plan(weight_map, model)
    if weight_map.files[0].samefile(own.files[0]):
        plan = export_plan(weight_map, model, load.naming, like=assembly.index)
        return plan.with_copies(item.info for item in load.ignored if not item.quantized)
    widest = reduce(torch.promote_types, (_dtype(piece.info) for piece in load.pieces))
    return export_plan(weight_map, model).with_dtype(widest)


def _check_out(settings: ExportSettings, checkpoint: Path) -> None:
    """Refuse what cannot work before anything is read."""
    out, own = settings.out.resolve(), _folder(checkpoint).resolve()
    if out in (own, *own.parents):
        raise OptionError(f"out={settings.out}: is where the checkpoint is; choose another folder")
    check_free(settings.out, overwrite=settings.overwrite)


def _write(
    assembly: Assembly,
    settings: ExportSettings,
    plan: ExportPlan,
    source: ParameterSource,
    progress: Progress | None,
) -> Exported:
    """Write the folder."""
    if settings.dtype is not None:
        plan = plan.with_dtype(settings.dtype)
    plan.raise_for_findings()
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, plan.nbytes)

    with output_folder(settings.out, overwrite=settings.overwrite) as folder:
        _check_room(folder, plan.nbytes)
        try:
            _write_beside(assembly, plan, folder)  # first: it takes no time and may fail
            files = execute_export(
                plan, source, folder, max_shard_size=settings.max_shard_size, progress=add
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(f"{settings.out}: cannot be written: {reason}") from error
    count = sum(file.suffix == ".safetensors" for file in files)
    return Exported(plan, count, *_others(assembly, plan))


def _others(assembly: Assembly, plan: ExportPlan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what was copied, what was left out), one line a reason."""
    copied, left_out = {}, {}
    if assembly.plan is not None:
        names = {tensor.name for tensor in plan.tensors}
        for item in assembly.plan.ignored:
            group = copied if item.info.name in names else left_out
            group.setdefault(item.reason, []).append(item.info.name)
        for tie in assembly.plan.ties:
            left_out.setdefault(f"tied to {tie.tied_to}", []).append(tie.source)
    if not assembly.config:
        left_out["the checkpoint has none"] = ["config.json"]
    lines = [[f"{fold_all(n)}: {why}" for why, n in group.items()] for group in (copied, left_out)]
    return tuple(lines[0]), tuple(lines[1])


def _check_room(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise CheckpointError(
            f"{folder.parent}: the export takes {nbytes:,} bytes and the disk has {free:,} free"
        )


def _write_beside(assembly: Assembly, plan: ExportPlan, folder: Path) -> None:
    """Write config, tokenizer and what else stands beside the weights."""
    index = assembly.index
    weights = [t for t in plan.tensors if t.pieces and not t.keeps_dtype] or plan.tensors
    dtype = str(reduce(torch.promote_types, (t.dtype for t in weights))).removeprefix("torch.")
    if index is not None and index.format == "gguf":
        write_gguf_files(index.metadata, assembly.config, folder, dtype)
        return
    copy_files(_folder(assembly.path), folder, assembly.config)
    if assembly.config:
        listed = {} if index is None else index.tensors
        same = all(t.name in listed and t.dtype == _dtype(listed[t.name]) for t in plan.tensors)
        if same:
            shutil.copyfile(_folder(assembly.path) / "config.json", folder / "config.json")
        else:
            write_config(assembly.config, folder, dtype)


def _dtype(info: TensorInfo) -> torch.dtype:
    """The type in which a tensor is read: float32 for the formats that are dequantised."""
    return TORCH_DTYPES.get(info.dtype, torch.float32)


def _folder(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent
