"""`export_plan`: model x map -> every tensor to write, and what the map cannot write.

The inverse of `plan_load`, and made by the same planner: the map's rules say which tensors *would*
fill the model, and each of those copies is then taken backwards. A plan is pure data; only
`execute_export` has effects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from assembler.blocks.parallel import TensorParallel
from assembler.errors import WeightMapError
from assembler.weights.cuts import Span
from assembler.weights.finding import Finding
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import fold_issues
from assembler.weights.naming import Naming
from assembler.weights.ops import Op, Shape
from assembler.weights.pairing import pair_tensors
from assembler.weights.parameters import read_parameters
from assembler.weights.pieces import Constant
from assembler.weights.plan_rules import Matched, match_rules
from assembler.weights.plan_sources import SourceResolver
from assembler.weights.tensor_data import TORCH_DTYPES
from assembler.weights.weight_map import WeightMap
from assembler.weights.write_back import Loss, RankPiece, find_losses, pieces_by_tensor

FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class ExportPiece:
    """A slice of one rank's parameter that goes into a tensor."""

    rank: int
    parameter: str
    parameter_slice: tuple[Span, ...]  # (): the whole parameter
    ops: tuple[Op, ...]  # what loading does to the tensor to get the slice; undone in reverse


@dataclass(frozen=True)
class ExportTensor:
    """One tensor to write: made of pieces, or copied as it is from the checkpoint read."""

    name: str
    shape: Shape
    dtype: torch.dtype
    pieces: tuple[ExportPiece, ...] = ()
    keeps_dtype: bool = False  # by its rule, whatever the others are converted to
    copied: TensorInfo | None = None  # a tensor that the map ignores: no parameter holds it

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ExportPlan:
    """The tensors that a map makes of a model, in the order of the parameters."""

    map_name: str
    size: int  # tensor-parallel ranks that the pieces come from
    tensors: tuple[ExportTensor, ...]
    constants: tuple[tuple[int, Constant], ...] = ()  # (rank, what no tensor holds)
    losses: tuple[Loss, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all the tensors on disk."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def with_dtype(self, dtype: torch.dtype) -> ExportPlan:
        """The plan with its tensors converted to `dtype`.

        Integers, 8-bit types and what the map says to keep stay as they are.
        """
        tensors = (
            replace(t, dtype=dtype) if t.dtype in FLOATS and not t.keeps_dtype else t
            for t in self.tensors
        )
        return replace(self, tensors=tuple(tensors))

    def with_dtypes_of(self, model: nn.Module) -> ExportPlan:
        """The plan with every tensor in the type of the parameter that it is made of."""
        tensors = (
            replace(t, dtype=model.get_parameter(t.pieces[0].parameter).dtype) if t.pieces else t
            for t in self.tensors
        )
        return replace(self, tensors=tuple(tensors))

    def with_copies(self, infos: Iterable[TensorInfo]) -> ExportPlan:
        """The plan with more tensors, taken as they are from the checkpoint that was read."""
        copies = (ExportTensor(i.name, i.shape, TORCH_DTYPES[i.dtype], copied=i) for i in infos)
        return replace(self, tensors=(*self.tensors, *copies))

    def raise_for_findings(self) -> None:
        """Raise one WeightMapError that lists why the map cannot write the model, if it cannot."""
        lines = [str(finding) for finding in self.findings if finding.severity == "error"]
        lines += [str(loss) for loss in self.losses if not loss.rounds]
        if lines:
            head = f"the weight map '{self.map_name}' cannot write this model back:"
            raise WeightMapError("\n  ".join([head, *lines]))


def export_plan(
    weight_map: WeightMap,
    model: nn.Module,
    naming: Naming | None = None,
    *,
    like: CheckpointIndex | None = None,
) -> ExportPlan:
    """Work out which tensors `weight_map` makes of `model`, without reading or writing any.

    Args:
        weight_map: whose names and layouts to write.
        model: an assembled model (on meta or loaded). For a tensor-parallel one, any rank's: the
            plan says what each rank gives.
        naming: of the map's `prefixes` the one to write with; default: the first.
        like: a checkpoint that loads through this map without findings, whose tensors are then
            written, with the same dtypes; of several ways that a rule has, the one that the
            checkpoint took. Without it, tensors get the dtypes of their parameters.

    Returns:
        The plan. A map that does not fit the model is not raised but found in `findings`, and what
        it cannot write back in `losses`.
    """
    naming = weight_map.prefixes[0] if naming is None else naming
    parameters = read_parameters(model)
    size = parameters.tp.size
    ranks = [replace(parameters, tp=TensorParallel(rank, size)) for rank in range(size)]
    matched = [match_rules(weight_map, rank) for rank in ranks]
    if like is None:
        index = _index_to_write(matched[0], model, naming)
    else:
        index = pair_tensors(like, weight_map, matched[0].recipes).to_write()
    resolved = [
        SourceResolver(index, naming, parameters.untied_heads).resolve(each.ways)
        for each in matched
    ]
    by_tensor = pieces_by_tensor([resolution.pieces for resolution in resolved])
    order = {name: n for n, name in enumerate(parameters.slots)}
    in_order = sorted(by_tensor.items(), key=lambda item: order[item[1][0].piece.target])
    constants = [(rank, c) for rank, each in enumerate(resolved) for c in each.constants]
    issues = fold_issues([*matched[0].issues, *resolved[0].issues])
    return ExportPlan(
        map_name=weight_map.name,
        size=size,
        tensors=tuple(_tensor(index.tensors[n], group, matched[0]) for n, group in in_order),
        constants=tuple(constants),
        losses=find_losses(weight_map, by_tensor),
        findings=tuple(issue.finding() for issue in issues),
    )


def _index_to_write(matched: Matched, model: nn.Module, naming: Naming) -> CheckpointIndex:
    """A checkpoint that holds all the tensors that the first way of each rule names."""
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    tensors: dict[str, TensorInfo] = {}
    for target, ways in matched.ways.items():
        if ways[0].slot.tied_to is not None:
            continue
        kept = matched.dtypes.get(target)
        dtype = model.get_parameter(target).dtype if kept is None else getattr(torch, kept)
        for recipe in ways[0].recipes:
            for name in map(naming.on_disk, recipe.names):
                tensors[name] = TensorInfo(name, recipe.shape, names[dtype], Path(), 0, 0)
    return CheckpointIndex(Path(), "safetensors", tensors, {}, {})


def _tensor(info: TensorInfo, group: list[RankPiece], matched: Matched) -> ExportTensor:
    """The tensor that `group` was to be read from, to be made of the same pieces."""
    pieces = tuple(
        ExportPiece(item.rank, item.piece.target, item.piece.target_slice, item.piece.ops)
        for item in group
    )
    keeps = any(piece.parameter in matched.dtypes for piece in pieces)
    return ExportTensor(info.name, info.shape, TORCH_DTYPES[info.dtype], pieces, keeps)
