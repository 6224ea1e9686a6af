"""Joins the two tensors of every quantised weight before rules look for it, and checks they fit.

Rules name `X.weight` and find one tensor of floating point, whatever the release. Pairs are found
by name among all tensors (the method of config.json), and for rules with `dequantize` among theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from assembler.weights.ignores import Ignore
from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import Issue
from assembler.weights.naming import Naming
from assembler.weights.ops import Shape, Transpose
from assembler.weights.quantization import Scheme, UnknownMethod, read_scheme
from assembler.weights.quantized import (
    MXFP4_BLOCK,
    SCALE_DTYPES,
    VALUE_DTYPES,
    Decoder,
    DequantizedInfo,
    Mxfp4,
    QuantizedInfo,
    ScaledFloat8,
    loss_of,
    tensors_of,
)
from assembler.weights.recipes import Recipe
from assembler.weights.unclaimed import IgnoredTensor
from assembler.weights.weight_map import WeightMap
from assembler.weights.yaml_marks import display_path

_VALUES = {"fp8": frozenset(VALUE_DTYPES), "mxfp4": frozenset({"U8"})}


@dataclass
class Pairing:
    """A checkpoint with its pairs joined, and what is wrong with them."""

    index: CheckpointIndex  # each pair is one tensor here
    issues: list[Issue] = field(default_factory=list)
    refusal: Issue | None = None  # config.json names a method that is not known
    ignore: tuple[Ignore, ...] = ()  # tensors that only quantised arithmetic needs
    halves: dict[str, tuple[str, str]] = field(default_factory=dict)  # lone tensor -> (why, name)
    broken: set[str] = field(default_factory=set)  # tensors of pairs that cannot be joined

    def explained(self, issues: Iterable[Issue]) -> list[Issue]:
        """`issues` of the joined tensors: that a half lacks the other is said, the rest follows."""
        found = []
        for issue in issues:
            if issue.kind in ("dtype", "unclaimed") and issue.subject in self.broken:
                continue
            if issue.kind in ("dtype", "unclaimed") and issue.subject in self.halves:
                message, other = self.halves[issue.subject]
                kind = "missing" if issue.kind == "dtype" else issue.kind
                where = str(self.index.tensors[issue.subject].file)
                issue = Issue(kind, issue.subject, message, (other,), where)
            found.append(issue)
        return found

    def halves_of(self, item: IgnoredTensor) -> list[IgnoredTensor]:
        """An ignored tensor as it is on disk, marked if it means nothing among plain weights."""
        infos = tensors_of(item.info)
        quantized = len(infos) > 1 or any(i.matches(item.info.name) for i in self.ignore)
        return [replace(item, info=info, quantized=quantized) for info in infos]

    def to_write(self) -> CheckpointIndex:
        """The same tensors with the dequantised weight in place of each pair."""
        dtype = _weight_dtype(self.index.config)
        tensors = {
            name: DequantizedInfo(name, i.shape, dtype, i.file, i.offset, i.nbytes, loss_of(i))
            if isinstance(i, QuantizedInfo)
            else i
            for name, i in self.index.tensors.items()
        }
        return replace(self.index, tensors=tensors)


def pair_tensors(
    index: CheckpointIndex, weight_map: WeightMap, recipes: Iterable[Recipe]
) -> Pairing:
    """Find the pairs that config.json and the rules of `recipes` speak of."""
    out = Pairing(index)
    scheme = read_scheme(index.config, weight_map.quantization)
    if index.format == "gguf":
        return out
    tensors = dict(index.tensors)
    if isinstance(scheme, UnknownMethod):
        out.refusal = _refusal(scheme, weight_map, index)
    elif scheme is not None:
        ends, dtypes = scheme.values, _VALUES[scheme.format]
        for name, info in index.tensors.items():
            if name.endswith(ends) and info.dtype in dtypes:
                _pair(out, tensors, name.removesuffix(ends), scheme)
        _find_lone_scales(out, tensors, scheme)
        config = str(index.root / "config.json")
        out.ignore = tuple(
            Ignore(glob, reason, config, optional=True) for glob, reason in scheme.ignored
        )
    for weight, own in _named_by_rules(weight_map.prefixes, recipes):
        if weight + own.values in tensors and not isinstance(tensors.get(weight), QuantizedInfo):
            _pair(out, tensors, weight, own)
    out.index = replace(index, tensors=tensors)
    return out


def _named_by_rules(
    namings: Iterable[Naming], recipes: Iterable[Recipe]
) -> Iterable[tuple[str, Scheme]]:
    asked = [recipe for recipe in recipes if recipe.source.dequantize is not None]
    for naming in namings:
        for recipe in asked:
            for name in recipe.names:
                yield naming.on_disk(name), recipe.source.dequantize


def _pair(out: Pairing, tensors: dict[str, TensorInfo], weight: str, scheme: Scheme) -> None:
    """Put the weight in place of its values and scales, if both are there."""
    values = tensors[weight + scheme.values]
    if values.dtype not in _VALUES[scheme.format]:
        return  # a plain weight among quantised ones
    scales = None
    for end in scheme.scales:
        scales = scales or tensors.get(weight + end)
    if scales is None:
        why = f"is stored as {values.dtype}, and its scale {{0}} is not in the checkpoint"
        out.halves[values.name] = (why, weight + scheme.scales[0])
        return
    joined, problem = _join(weight, values, scales, scheme)
    if problem:
        out.issues.append(Issue("shape", scales.name, problem, (values.name,), str(scales.file)))
    if joined is None:
        out.broken |= {values.name, scales.name}
        return
    del tensors[values.name], tensors[scales.name]
    tensors[weight] = joined


def _find_lone_scales(out: Pairing, tensors: Mapping[str, TensorInfo], scheme: Scheme) -> None:
    for name, info in tensors.items():
        if not name.endswith(scheme.scales) or isinstance(info, QuantizedInfo):
            continue
        end = next(end for end in scheme.scales if name.endswith(end))
        weight = name.removesuffix(end) + scheme.values
        beside = tensors.get(weight)
        why = "is the scale of {0}, which the checkpoint does not have"
        if beside is not None:
            why = f"is the scale of {{0}}, which is stored as {beside.dtype} and needs none"
        out.halves.setdefault(name, (why, weight))


def _join(
    weight: str, values: TensorInfo, scales: TensorInfo, scheme: Scheme
) -> tuple[QuantizedInfo | None, str]:
    """(the weight, what is wrong with its scales). Without problems there is a weight."""
    if scheme.format == "fp8":
        decoder, problem = _float8(
            values.shape, scales.shape, (values.dtype, scales.dtype), scheme.block
        )
        shape, label, transposed = values.shape, "FP8", False
    else:
        decoder, problem = _mxfp4(values, scales)
        stored = (*values.shape[:-2], values.shape[-2] * MXFP4_BLOCK) if decoder else ()
        transposed = len(stored) > 2  # gpt-oss: experts multiply from the left
        shape, label = Transpose().shape(stored) if transposed else stored, "MXFP4"
    if decoder is None:
        return None, problem
    size = values.nbytes + scales.nbytes
    joined = QuantizedInfo(
        weight, shape, label, values.file, values.offset, size, values, scales, decoder, transposed
    )
    return joined, problem


@lru_cache(maxsize=1024)  # thousands of tensors have a handful of shapes
def _float8(
    values: Shape, scales: Shape, dtypes: tuple[str, str], block: tuple[int, int] | None
) -> tuple[Decoder | None, str]:
    shape = values if len(values) > 1 else (1, math.prod(values))
    lone, (rows, columns) = shape[:-2], shape[-2:]
    grids: list[tuple[tuple[int, ...], tuple[int, int], str]] = []
    if block is not None:
        grid = (*lone, -(-rows // block[0]), -(-columns // block[1]))
        grids.append((grid, block, f"blocks of {block[0]} by {block[1]}"))
    grids += [((*lone, 1, 1), (rows, columns), "the tensor")]
    grids += [((*lone, rows, 1), (1, columns), "each row"), ((*lone, rows), (1, columns), "")]
    if not lone:
        grids += [((), (rows, columns), ""), ((1,), (rows, columns), "")]
    if dtypes[1] not in SCALE_DTYPES:
        return None, f"is stored as {dtypes[1]}, which is no scale of {{0}}"
    for grid, size, _ in grids:
        if grid == scales:
            return ScaledFloat8(rows, columns, size, *dtypes), ""
    wanted = " or ".join(f"{list(grid)} for {what}" for grid, _, what in grids if what)
    found = f"has the shape {list(scales)}"
    problem = f"{found}, but {{0}} of shape {list(values)} needs {wanted}"
    size = block or (rows, columns)
    return ScaledFloat8(rows, columns, size, *dtypes), problem


def _mxfp4(values: TensorInfo, scales: TensorInfo) -> tuple[Decoder | None, str]:
    half = MXFP4_BLOCK // 2
    if len(values.shape) < 2 or values.shape[-1] != half or scales.dtype != "U8":
        return None, (
            f"is {scales.dtype} of shape {list(scales.shape)}, but {{0}} of shape "
            f"{list(values.shape)} is no MXFP4: its last dim would be {half}, its scales U8"
        )
    problem = ""
    if scales.shape != values.shape[:-1]:
        problem = (
            f"has the shape {list(scales.shape)}, but {{0}} of shape {list(values.shape)} needs "
            f"{list(values.shape[:-1])}"
        )
    return Mxfp4(), problem


def _refusal(unknown: UnknownMethod, weight_map: WeightMap, index: CheckpointIndex) -> Issue:
    hint = (
        "Take the release that is not quantised, or name the format of the method under "
        f"`quantization` of {display_path(weight_map.files[0])}."
    )
    where = str(index.root / "config.json")
    hint = f"{unknown.hint} {hint}"
    return Issue("dtype", "quantization_config", unknown.message, (), where, hint)


def _weight_dtype(config: Mapping[str, Any]) -> str:
    """The type that config.json gives the model, in the terms of safetensors."""
    inner = config.get("text_config")
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    for holder in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if holder.get(key) in names:
                return names[holder[key]]
    return "BF16"
