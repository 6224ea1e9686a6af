"""Reads the weights of norms, and nothing else, for a mistake that headers cannot show.

A norm multiplies by `offset + weight`, and checkpoints are confused about which of the two they
hold: many conversions of Gemma models have 1 added already, and get it twice. Shapes agree either
way; values mostly tell. A trained model seldom scales by less than nothing, so weights as they
are (offset 0) are hardly ever below 0, while weights less one are, wherever a channel is damped.
Their mean says little: that of Gemma 3 270M is between 0.8 and 93 for its kinds of norms, and those
of Llama-like models can be nearer to 0 than to 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from assembler.weights.finding import Finding
from assembler.weights.fold import Form, blank_indices, fold_names
from assembler.weights.index import CheckpointIndex
from assembler.weights.ops import apply_ops
from assembler.weights.pieces import Piece
from assembler.weights.plan import LoadPlan

Verdict = Literal["fits", "other", "unclear"]

# Measured: weights as they are have at most 1.6 % below 0 in any kind of norm (SmolLM2 135M, and
# Gemma 3 270M with 1 added); of weights less one five kinds in seven have 7 to 22 %.
FEW, MANY = 0.02, 0.05
SMALL = 0.3  # a median nearer to 0 than this is that of weights less one, as they begin


@dataclass(frozen=True)
class NormKind:
    """The norms in the same place of every layer."""

    names: str  # folded over layers
    offset: int  # what the conf adds
    mean: float
    median: float
    negative: float  # the share of values below 0

    def __str__(self) -> str:
        share = f"{self.negative:.1%}".replace("%", " %")
        return f"{self.names} (mean {self.mean:.3g}, median {self.median:.3g}, {share} below 0)"


def probe_norms(plan: LoadPlan, model: nn.Module, index: CheckpointIndex) -> tuple[Finding, ...]:
    """Whether the weights of norms on disk suit the `offset` of the conf, one finding an offset.

    "Applied twice" (offset 1, weights that have it) is an error; "never applied" (offset 0, weights
    less one) is a note, since a model may well have negative weights; so is the rest.

    Raises CheckpointError if a weight cannot be read.
    """
    kinds = norm_kinds(plan, model, index)
    found = []
    for offset in sorted({kind.offset for kind in kinds}):
        own = [kind for kind in kinds if kind.offset == offset]
        found.append(_finding(offset, own, judge(offset, own)))
    return tuple(found)


def norm_kinds(plan: LoadPlan, model: nn.Module, index: CheckpointIndex) -> list[NormKind]:
    """The statistics of every kind of norm whose weight comes from one tensor."""
    pieces: defaultdict[str, list[Piece]] = defaultdict(list)
    for piece in plan.pieces:
        pieces[piece.target].append(piece)
    groups: defaultdict[tuple[Form, int], dict[str, torch.Tensor]] = defaultdict(dict)
    for path, module in model.named_modules():
        own = pieces.get(f"{path}.weight", ())
        if getattr(module, "role", None) == "norm" and len(own) == 1:
            [piece] = own
            value = apply_ops(piece.ops, index.read_info(piece.info)).float().flatten()
            groups[blank_indices(piece.source)[0], module.offset][piece.source] = value
    return [_kind(values, offset) for (_, offset), values in groups.items()]


def judge(offset: int, kinds: Sequence[NormKind]) -> Verdict:
    """Whether kinds of norms of one offset hold what the conf takes them to hold."""
    begun = [kind for kind in kinds if abs(kind.median) < SMALL]
    below = [kind for kind in kinds if kind.negative >= MANY]
    if offset == 1:
        if below or begun:
            return "fits"
        return "other" if all(kind.negative < FEW for kind in kinds) else "unclear"
    if 2 * len(below) >= len(kinds):
        return "other"
    return "unclear" if below or len(begun) == len(kinds) else "fits"


def _kind(values: Mapping[str, torch.Tensor], offset: int) -> NormKind:
    together = torch.cat(list(values.values()))
    return NormKind(
        names=", ".join(fold.text for fold in fold_names(values)),
        offset=offset,
        mean=float(together.mean()),
        median=float(together.median()),
        negative=float((together < 0).float().mean()),
    )


def _finding(offset: int, kinds: Sequence[NormKind], verdict: Verdict) -> Finding:
    subject, listed = f"norms with offset {offset}", "; ".join(map(str, kinds))
    if verdict == "fits":
        message = f"their weights look as they should: {listed}"
        return Finding("values", subject, message, severity="note")
    if verdict == "unclear":
        message = f"their weights do not tell whether 1 is to be added: {listed}"
        return Finding("values", subject, message, severity="note")
    if offset == 1:
        message = f"1 was added on disk already, it seems, and would be twice: {listed}"
        hint = "Set `offset: 0` for these norms in the conf, or take the original checkpoint."
        return Finding("values", subject, message, hint=hint)
    message = f"they seem to hold the weight less 1, which nobody adds: {listed}"
    hint = "If so, set `offset: 1` for these norms in the conf."
    return Finding("values", subject, message, hint=hint, severity="note")
