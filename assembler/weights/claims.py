"""Who takes which tensor: every tensor once, or in shares that make up the whole of it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from assembler.weights.index import CheckpointIndex, TensorInfo
from assembler.weights.issues import Issue
from assembler.weights.quantized import VALUE_DTYPES, QuantizedInfo
from assembler.weights.recipes import Recipe
from assembler.weights.shape_words import shape_words

# Types whose values are weights as they stand. GGUF's block formats are dequantised on reading;
# 8-bit and packed safetensors mean nothing without the scales that come with them.
PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
INTEGER_DTYPES = frozenset({"I64", "I32", "I16", "I8", "U8", "BOOL"})


class Claims:
    """The tensors taken so far, each checked when it is."""

    def __init__(self, index: CheckpointIndex) -> None:
        self.index = index
        self.owners: dict[str, str] = {}  # tensor -> the (first) parameter it fills
        self.used: set[str] = set()  # the tensors that fit
        self._shares: dict[str, list[tuple[int, int, str]]] = {}  # rows taken of shared tensors
        self._shared_by: dict[str, Recipe] = {}

    def take(self, recipe: Recipe, info: TensorInfo) -> Issue | None:
        """Claim `info` for a recipe; the issue if it is somebody else's or does not fit."""
        issue = self._taken(recipe, info)
        if issue is None and info.shape != recipe.shape:
            issue = misshapen(recipe, info, self.index)
        if issue is None and not self._holds_weights(info):
            message = f"is stored as {info.dtype}, which cannot fill {{0}} by itself"
            hint = f"Weights are {', '.join(sorted(PLAIN_DTYPES))}; this one is quantised."
            if info.dtype in VALUE_DTYPES:
                hint += " If its scales are there too, `dequantize` of its rule can name them."
            names = (recipe.slot.name,)
            issue = Issue("dtype", info.name, message, names, str(info.file), hint)
        self.owners.setdefault(info.name, recipe.slot.name)
        if issue is None:
            self.used.add(info.name)
        return issue

    def _taken(self, recipe: Recipe, info: TensorInfo) -> Issue | None:
        owner, window = self.owners.get(info.name), recipe.window
        if owner is not None and (window is None or info.name not in self._shares):
            return _wanted_twice(recipe, info, owner)
        if window is None:
            return None
        shares = self._shares.setdefault(info.name, [])
        self._shared_by.setdefault(info.name, recipe)
        share = (window.start, window.stop, recipe.slot.name)
        at = bisect.bisect(shares, share)
        for start, stop, other in shares[max(0, at - 1) : at + 1]:
            if start < window.stop and window.start < stop:
                return _wanted_twice(recipe, info, other)
        shares.insert(at, share)
        return None

    def unused_shares(self) -> Iterator[Issue]:
        """Shared tensors of which some rows fill nothing."""
        for name, shares in self._shares.items():
            recipe, reached, gaps = self._shared_by[name], 0, []
            total = recipe.window.total if recipe.window else 0
            for start, stop, _ in [*shares, (total, total, "")]:
                if start > reached:
                    gaps.append(f"{reached}:{start}")
                reached = max(reached, stop)
            if gaps and name in self.used:
                message = f"its rows {', '.join(gaps)} fill no parameter"
                hint = "Every target that shares the tensor needs a rule that says so."
                yield Issue("unclaimed", name, message, (), recipe.rule.where, hint)

    def _holds_weights(self, info: TensorInfo) -> bool:
        """Whether the values, as they are read, are weights."""
        if isinstance(info, QuantizedInfo):
            return True
        if self.index.format == "gguf":
            return info.dtype not in INTEGER_DTYPES
        return info.dtype in PLAIN_DTYPES


def misshapen(recipe: Recipe, info: TensorInfo, index: CheckpointIndex, rows: str = "") -> Issue:
    """A tensor of the wrong shape; `rows` says how many it may have where that is not fixed."""
    want, facts = shape_words(recipe, info.shape, index.config)
    if rows:
        want, facts = f"{rows} rows like those of {want}", ""
    message = f"has the shape {list(info.shape)}, but {{0}} needs {want}"
    names = (recipe.slot.name,)
    return Issue("shape", info.name, message, names, str(info.file), facts)


def _wanted_twice(recipe: Recipe, info: TensorInfo, owner: str) -> Issue:
    names = (owner, recipe.slot.name)
    message = "two parameters want it: {0} and {1}"
    if names[0] == names[1]:
        message = "{0} wants it twice"
    return Issue("duplicate", info.name, message, names, recipe.rule.where)
