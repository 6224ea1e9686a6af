"""`execute_export`: carries an `ExportPlan` out, one tensor in memory at a time.

Where the parameters come from is a `ParameterSource`: the loaded modules of every rank, or the
checkpoint itself, of which no more than one parameter is then in memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from assembler.errors import CheckpointError
from assembler.weights.export_plan import ExportPlan, ExportTensor
from assembler.weights.index import CheckpointIndex
from assembler.weights.ops import apply_ops, write_back
from assembler.weights.plan import Constant, LoadPlan, Piece, Span
from assembler.weights.safetensors_index import INDEX_NAME
from assembler.weights.safetensors_writer import write_safetensors

SINGLE_NAME = "model.safetensors"

Progress = Callable[[int], object]


class ParameterSource(Protocol):
    """Gives the parameters of a model to an export, and the tensors that are copied as they are."""

    def parameter(self, rank: int, name: str) -> torch.Tensor:
        """The parameter `name` of `rank`; not to be written to."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name` of the checkpoint that was read."""


class LoadedParameters:
    """The parameters of loaded modules, one for each rank in order.

    `index` is the checkpoint that they were loaded from, for the tensors that are copied.
    """

    def __init__(
        self, models_by_rank: Sequence[nn.Module], index: CheckpointIndex | None = None
    ) -> None:
        self._index = index
        self._ranks = [dict(m.named_parameters(remove_duplicate=False)) for m in models_by_rank]

    def parameter(self, rank: int, name: str) -> torch.Tensor:
        return self._ranks[rank][name].detach()

    def tensor(self, name: str) -> torch.Tensor:
        assert self._index is not None, f"{name}: no parameter holds it"
        return self._index.read(name)


class CheckpointParameters:
    """The parameters as a load would fill them, each made when it is asked for.

    A parameter gets the widest type of what fills it, so that nothing is rounded on the way.
    """

    def __init__(self, plan: LoadPlan, index: CheckpointIndex) -> None:
        assert plan.size == 1, "a checkpoint is exported whole"
        plan.raise_for_findings()
        self._index = index
        self._shapes = {slot.name: slot.layout.shape for slot in plan.parameters}
        self._pieces: defaultdict[str, list[Piece]] = defaultdict(list)
        self._constants: defaultdict[str, list[Constant]] = defaultdict(list)
        for piece in plan.pieces:
            self._pieces[piece.target].append(piece)
        for constant in plan.constants:
            self._constants[constant.target].append(constant)
        self._last: tuple[str, torch.Tensor] | None = None

    def parameter(self, rank: int, name: str) -> torch.Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None  # let go of the one before, and of the pages of the files it lay in
            self._index.close()
            self._last = (name, self._make(name))
        return self._last[1]

    def tensor(self, name: str) -> torch.Tensor:
        return self._index.read(name)

    def _make(self, name: str) -> torch.Tensor:
        pieces, constants = self._pieces[name], self._constants[name]
        values = [apply_ops(piece.ops, self._index.read_info(piece.info)) for piece in pieces]
        if len(values) == 1 and not constants:
            return values[0]
        dtypes = (value.dtype for value in values)
        dtype = reduce(torch.promote_types, dtypes) if values else torch.float32
        parameter = torch.empty(self._shapes[name], dtype=dtype)
        for piece, value in zip(pieces, values, strict=True):
            _slice(parameter, piece.target_slice).copy_(value)
        for constant in constants:
            _slice(parameter, constant.target_slice).fill_(constant.value)
        return parameter


@torch.no_grad()
def execute_export(
    plan: ExportPlan,
    source: ParameterSource,
    folder: Path,
    *,
    max_shard_size: int = 5 * 10**9,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Write the tensors of `plan` into `folder`, in the layout of the Hugging Face hub.

    One `model.safetensors`, or shards of at most `max_shard_size` bytes (a larger tensor has one to
    itself) and their index.

    Args:
        progress: called with the number of bytes each time a tensor has been written; they add up
            to `plan.nbytes`.

    Returns:
        The files written.

    Raises:
        WeightMapError: the plan has findings or loses something; nothing was written.
        CheckpointError: a value does not fit the type it is to be written as, or a parameter that
            the map fills with a constant is something else by now.
    """
    plan.raise_for_findings()
    _check_constants(plan, source)
    shards = split_shards(plan.tensors, max_shard_size)
    names = shard_names(len(shards))
    for name, tensors in zip(names, shards, strict=True):
        by_name = {tensor.name: tensor for tensor in tensors}

        def value_of(name: str, by_name: dict[str, ExportTensor] = by_name) -> torch.Tensor:
            value = tensor_value(by_name[name], source)
            if progress is not None:
                progress(by_name[name].nbytes)
            return value

        write_safetensors(folder / name, tensors, value_of)
    files = [folder / name for name in names]
    if len(shards) > 1:
        files.append(folder / INDEX_NAME)
        placed = {t.name: n for n, tensors in zip(names, shards, strict=True) for t in tensors}
        content = {"metadata": {"total_size": plan.nbytes}, "weight_map": placed}
        files[-1].write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    return tuple(files)


def _check_constants(plan: ExportPlan, source: ParameterSource) -> None:
    """No tensor holds what a rule fills in, so that must not have changed."""
    for rank, constant in plan.constants:
        parameter = source.parameter(rank, constant.target)
        values = _slice(parameter, constant.target_slice)
        if not (values == torch.tensor(constant.value, dtype=values.dtype)).all():
            raise CheckpointError(
                f"{constant.target} was filled with {constant.value:g} by the weight map "
                f"'{plan.map_name}' and has other values now, which no tensor of it holds"
            )


def split_shards(
    tensors: Sequence[ExportTensor], max_shard_size: int
) -> list[tuple[ExportTensor, ...]]:
    """The tensors in order, cut into shards of at most `max_shard_size` bytes where possible."""
    shards: list[list[ExportTensor]] = [[]]
    room = max_shard_size
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return [tuple(shard) for shard in shards]


def shard_names(count: int) -> list[str]:
    """`model.safetensors`, or `model-00001-of-00003.safetensors` and so on."""
    if count == 1:
        return [SINGLE_NAME]
    return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def tensor_value(tensor: ExportTensor, source: ParameterSource) -> torch.Tensor:
    """The values of one tensor, put together from its pieces and in its type."""
    if tensor.copied is not None:
        return _converted(source.tensor(tensor.name), tensor)
    first = tensor.pieces[0]
    value = _slice(source.parameter(first.rank, first.parameter), first.parameter_slice)
    if first.ops or len(tensor.pieces) > 1:
        into = torch.empty(tensor.shape, dtype=value.dtype, device=value.device)
        for piece in tensor.pieces:
            parameter = source.parameter(piece.rank, piece.parameter)
            write_back(piece.ops, _slice(parameter, piece.parameter_slice), into)
        value = into
    return _converted(value, tensor)


def _converted(value: torch.Tensor, tensor: ExportTensor) -> torch.Tensor:
    """`value` in the tensor's type; a finite value that becomes infinite is an error."""
    if value.dtype == tensor.dtype:
        return value
    converted = value.to(tensor.dtype)
    if tensor.dtype.is_floating_point and not converted.isfinite().equal(value.isfinite()):
        largest = float(value[value.isfinite()].abs().max())
        raise CheckpointError(
            f"'{tensor.name}' has values up to {largest:.3g}, more than "
            f"{str(tensor.dtype).removeprefix('torch.')} can hold: choose another dtype"
        )
    return converted


def _slice(parameter: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    for span in spans:
        parameter = parameter.narrow(span.dim, span.start, span.stop - span.start)
    return parameter
