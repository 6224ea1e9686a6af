"""Whether a load can be taken back: which tensors come out of the model as they went in.

A load reads each tensor through windows and ops. It can be undone if the windows, over all parts
and ranks, add up to the whole tensor; and bit for bit if no op on the way rounds (`Op.loss`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from assembler.weights.fold import fold_names, merge_names
from assembler.weights.map_rules import Rule
from assembler.weights.ops import Op, Shape
from assembler.weights.pattern import PatternTree
from assembler.weights.pieces import Piece
from assembler.weights.quantized import loss_of
from assembler.weights.weight_map import WeightMap


@dataclass(frozen=True, slots=True)
class Loss:
    """A rule whose tensors do not come out of the model bit for bit, and why."""

    rule: str
    tensors: str  # folded over layers
    reason: str
    where: str  # file:line of the rule
    rounds: bool  # all the values are there, but for rounding: no reason not to write

    def __str__(self) -> str:
        return f"{self.rule} ({self.where}): {self.tensors}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RankPiece:
    """A piece of a load, and the rank that makes it."""

    rank: int
    piece: Piece


def pieces_by_tensor(
    pieces_by_rank: Sequence[Iterable[Piece]],
) -> dict[str, list[RankPiece]]:
    """Tensor -> the pieces read from it. What several ranks read alike is the first one's."""
    if len(pieces_by_rank) == 1:
        alone: dict[str, list[RankPiece]] = {}
        for piece in pieces_by_rank[0]:
            alone.setdefault(piece.source, []).append(RankPiece(0, piece))
        return alone
    found: dict[str, dict[tuple, RankPiece]] = {}
    for rank, pieces in enumerate(pieces_by_rank):
        for piece in pieces:
            alike = (piece.target, piece.part, piece.ops)
            found.setdefault(piece.source, {}).setdefault(alike, RankPiece(rank, piece))
    return {name: list(group.values()) for name, group in found.items()}


def find_losses(
    weight_map: WeightMap, by_tensor: Mapping[str, Sequence[RankPiece]]
) -> tuple[Loss, ...]:
    """What cannot be undone, one entry a rule and reason.

    Args:
        weight_map: the map that the pieces were planned with.
        by_tensor: the pieces of every rank (`pieces_by_tensor`).
    """
    reasons = cache(_reasons)  # thousands of tensors are read in a handful of ways
    lost: dict[tuple[str, bool, str], list[str]] = {}
    for name, group in by_tensor.items():
        info = group[0].piece.info
        chains = tuple([item.piece.ops for item in group])
        for reason, rounds in reasons(info.shape, loss_of(info), chains):
            lost.setdefault((reason, rounds, group[0].piece.target), []).append(name)
    if not lost:
        return ()
    rules = RuleLookup(weight_map)
    merged: dict[tuple[Rule, str, bool], list[str]] = {}
    for (reason, rounds, target), names in lost.items():
        merged.setdefault((rules.find(target), reason, rounds), []).extend(names)
    return tuple(
        Loss(str(rule), fold_all(names), reason, rule.where, rounds)
        for (rule, reason, rounds), names in merged.items()
    )


def _reasons(
    shape: Shape, own_loss: str | None, chains: Sequence[tuple[Op, ...]]
) -> tuple[tuple[str, bool], ...]:
    """Why a tensor is not what its pieces give back, and whether it is only rounding.

    Args:
        shape: of the tensor.
        own_loss: what reading it loses already.
        chains: the ops of each piece.
    """
    losses = [loss for ops in chains for op in ops if (loss := op.loss) is not None]
    losses += [own_loss] if own_loss else []
    reasons = [(f"loses {loss}", True) for loss in dict.fromkeys(losses)]
    covered = sum(_share_read(ops, shape) for ops in chains)
    if covered != 1:
        reasons.append((f"the model holds {float(covered):.1%} of its values", False))
    return tuple(reasons)


def _share_read(ops: Sequence[Op], shape: Shape) -> Fraction:
    """The share of a tensor's values that come through a chain: windows let part of it through."""
    share = Fraction(1)
    for op in ops:
        after = op.shape(shape)
        if op.inverse is None and math.prod(shape):
            share *= Fraction(math.prod(after), math.prod(shape))
        shape = after
    return share


class RuleLookup:
    """Looks up the rule that fills a parameter."""

    def __init__(self, weight_map: WeightMap) -> None:
        self._tree: PatternTree[Rule] = PatternTree()
        for rule in weight_map.rules:
            self._tree.add(rule.target, rule)

    def find(self, parameter: str) -> Rule:
        """The rule of the parameter itself, else that of its module. Raises IndexError for none."""
        return self.all(parameter)[0]

    def all(self, parameter: str) -> list[Rule]:
        """Every rule of the parameter itself, else every rule of its module."""
        return self._tree.find(parameter) or self._tree.find(parameter.rpartition(".")[0])


def fold_all(names: Iterable[str]) -> str:
    """Names on one line, those of all layers as one."""
    return merge_names([fold.text for fold in fold_names(dict.fromkeys(names))])
