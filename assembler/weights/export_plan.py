"""`export_plan`: model x map -> every tensor to write, and what the map cannot write.

The inverse of `plan_load`, and made by the same planner: the map's rules say which tensors *would*
fill the model, and each of those copies is then taken backwards. A plan is pure data; only
`execute_export` has effects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from assembler.blocks.parallel import TensorParallel
from assembler.errors import WeightMapError
from assembler.weights.finding import Finding
from assembler.weights.fold import fold_names, merge_names
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import fold_issues
from assembler.weights.ops import Op, Shape
from assembler.weights.parameters import ModelParameters, read_parameters
from assembler.weights.plan_rules import Matched, match_rules
from assembler.weights.plan_sources import Resolution, SourceResolver
from assembler.weights.recipes import Span
from assembler.weights.tensor_data import TORCH_DTYPES
from assembler.weights.weight_map import WeightMap

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
    copied: TensorInfo | None = None  # a tensor that the map ignores: the model knows nothing of it

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Loss:
    """A rule whose tensors do not come out of the model bit for bit, and why."""

    rule: str
    tensors: str  # folded over layers
    reason: str
    where: str  # file:line of the rule
    rounds: bool  # all the values are there, but for rounding: no reason not to write

    def __str__(self) -> str:
        return f"{self.rule} ({self.where}): {self.tensors}: {self.reason}"


@dataclass(frozen=True)
class ExportPlan:
    """The tensors that a map makes of a model, in the order of the parameters."""

    map_name: str
    size: int  # tensor-parallel ranks that the pieces come from
    tensors: tuple[ExportTensor, ...]
    losses: tuple[Loss, ...] = ()
    findings: tuple[Finding, ...] = ()
    tied: tuple[str, ...] = field(default=())  # parameters that are not written a second time

    @property
    def nbytes(self) -> int:
        """Bytes of all the tensors on disk."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def with_dtype(self, dtype: torch.dtype) -> ExportPlan:
        """The plan with every tensor converted to `dtype`, but for integers and 8-bit types."""
        converted = (replace(t, dtype=dtype) if t.dtype in FLOATS else t for t in self.tensors)
        return replace(self, tensors=tuple(converted))

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
    prefix: str | None = None,
    *,
    like: CheckpointIndex | None = None,
) -> ExportPlan:
    """Work out which tensors `weight_map` makes of `model`, without reading or writing any.

    Args:
        weight_map: whose names and layouts to write.
        model: an assembled model (on meta or loaded). For a tensor-parallel one, any rank's: the
            plan says what each rank gives.
        prefix: stands before every name; default: the first that the map accepts.
        like: a checkpoint that loads through this map without findings; the tensors are then the
            same as its own, with the same dtypes. Else they get their parameters' dtypes.

    Returns:
        The plan. A map that does not fit the model is not raised but found in `findings`, and what
        it cannot write back in `losses`.
    """
    prefix = weight_map.prefixes[0] if prefix is None else prefix
    parameters = read_parameters(model)
    size = parameters.tp.size
    matched = [
        match_rules(weight_map, replace(parameters, tp=TensorParallel(rank, size)))
        for rank in range(size)
    ]
    index = like or _index_to_write(matched[0], parameters, model, prefix)
    resolutions = [
        SourceResolver(index, prefix, parameters.untied_heads).resolve(each.recipes)
        for each in matched
    ]
    issues = [*matched[0].issues, *resolutions[0].issues]
    order = {name: n for n, name in enumerate(parameters.slots)}
    pieces = sorted(_pieces(resolutions).items(), key=lambda item: order[item[1][0].parameter])
    tensors = [
        ExportTensor(n, index.tensors[n].shape, TORCH_DTYPES[index.tensors[n].dtype], tuple(p))
        for n, p in pieces
    ]
    return ExportPlan(
        map_name=weight_map.name,
        size=size,
        tensors=tuple(tensors),
        losses=tuple(_losses(tensors, matched[0])),
        findings=tuple(issue.finding() for issue in fold_issues(issues)),
        tied=tuple(slot.name for slot in parameters.slots.values() if slot.tied_to),
    )


def _index_to_write(
    matched: Matched, parameters: ModelParameters, model: nn.Module, prefix: str
) -> CheckpointIndex:
    """A checkpoint that holds all the tensors the rules name, each as the model would read it."""
    names = {dtype: name for name, dtype in reversed(TORCH_DTYPES.items())}
    tensors: dict[str, TensorInfo] = {}
    for target, recipes in matched.recipes.items():
        if parameters.slots[target].tied_to is not None:
            continue
        dtype = names[model.get_parameter(target).dtype]
        for recipe in recipes:
            for name in (prefix + name for name in recipe.names):
                tensors[name] = TensorInfo(name, recipe.shape, dtype, Path(), 0, 0)
    return CheckpointIndex(Path(), "safetensors", tensors, {}, {})


def _pieces(resolutions: Sequence[Resolution]) -> Mapping[str, list[ExportPiece]]:
    """Tensor -> its pieces. What several ranks hold alike is taken from the first of them."""
    found: dict[str, dict[tuple, ExportPiece]] = {}
    for rank, resolution in enumerate(resolutions):
        for piece in resolution.pieces:
            export = ExportPiece(rank, piece.target, piece.target_slice, piece.ops)
            alike = (piece.target, piece.part, piece.ops)
            found.setdefault(piece.source, {}).setdefault(alike, export)
    return {name: list(pieces.values()) for name, pieces in found.items()}


def _losses(tensors: Iterable[ExportTensor], matched: Matched) -> Iterable[Loss]:
    """What cannot be undone, one entry a rule and reason."""
    lost: dict[tuple[str, str, str, bool], list[str]] = {}
    for tensor in tensors:
        rule = matched.recipes[tensor.pieces[0].parameter][0].rule
        for reason, rounds in _reasons(tensor):
            lost.setdefault((str(rule), reason, rule.where, rounds), []).append(tensor.name)
    for (rule, reason, where, rounds), names in lost.items():
        folded = merge_names([fold.text for fold in fold_names(dict.fromkeys(names))])
        yield Loss(rule, folded, reason, where, rounds)


def _reasons(tensor: ExportTensor) -> Iterable[tuple[str, bool]]:
    """Why `tensor` is not what its pieces give, and whether it is only rounding."""
    for reason in dict.fromkeys(op.loss for piece in tensor.pieces for op in piece.ops):
        if reason is not None:
            yield f"loses {reason}", True
    covered = sum(_share_read(piece.ops, tensor.shape) for piece in tensor.pieces)
    if covered != 1:
        yield f"the model holds {float(covered):.1%} of its values; the rest is not loaded", False


def _share_read(ops: Sequence[Op], shape: Shape) -> Fraction:
    """The share of a tensor's values that come through a chain: windows let part of it through."""
    share = Fraction(1)
    for op in ops:
        after = op.shape(shape)
        if op.inverse is None and math.prod(shape):
            share *= Fraction(math.prod(after), math.prod(shape))
        shape = after
    return share
