"""Which experts a token goes to and what each of them counts: one interface to its implementations.

Shapes: N tokens, K experts a token, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from assembler.kernels.fused import runs_fused

MAX_EXPERTS = 2048
"""The most experts whose scores the Triton kernel keeps in registers."""


@dataclass(frozen=True)
class ChoiceRule:
    """How a token's K experts follow from its logits.

    Experts are chosen by their scores and a bias of the choice, or by the logits themselves where
    there is neither a bias nor a limit to groups: great logits have scores that round to the same
    number. The weights are the scores, without the bias.
    """

    top_k: int
    softmax: bool  # scores: softmax over all experts, or sigmoid of each
    normalise: bool  # divide the weights of a token by their sum
    min_sum: float = 0.0  # the least to divide by
    scale: float = 1.0  # factor of the weights, after that
    groups: int = 1  # that the experts are dealt into, in order
    top_groups: int = 1  # that a token may choose from
    group_score: Literal["max", "top2"] = "max"  # of a group: its best expert's, or its best two's

    @property
    def limited(self) -> bool:
        """Whether a token may choose from some groups only."""
        return self.top_groups < self.groups


def choose_experts(
    logits: torch.Tensor, selection_bias: torch.Tensor | None, rule: ChoiceRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [N, K] float32 and chosen experts [N, K] int64, the preferred ones first.

    One Triton kernel where fused kernels run (`runs_fused`), plain torch everywhere else.

    Args:
        logits: [N, E].
        selection_bias: [E], added to the scores for the choice only.
        rule: top_k of at most E, and at most what the chosen groups hold.
    """
    if logits.shape[1] <= MAX_EXPERTS and runs_fused(logits, beside=(selection_bias,)):
        # Triton is imported by those who use it only: it is not there on every platform.
        from assembler.kernels.routing_triton import run_choice

        return run_choice(logits, selection_bias, rule)
    return choose_experts_torch(logits, selection_bias, rule)


def choose_experts_torch(
    logits: torch.Tensor, selection_bias: torch.Tensor | None, rule: ChoiceRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same contract as `choose_experts`; which of equal experts comes first is up to torch."""
    logits = logits.float()
    scores = logits.softmax(dim=-1) if rule.softmax else logits.sigmoid()
    if selection_bias is None and not rule.limited:
        chosen = logits.topk(rule.top_k, dim=-1).indices
    else:
        chosen = _preferences(scores, selection_bias, rule).topk(rule.top_k, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if rule.normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=rule.min_sum)
    return weights if rule.scale == 1.0 else weights * rule.scale, chosen


def _preferences(
    scores: torch.Tensor, selection_bias: torch.Tensor | None, rule: ChoiceRule
) -> torch.Tensor:
    """What experts are chosen by: biased scores, -inf outside of a token's groups."""
    if selection_bias is not None:
        scores = scores + selection_bias.type_as(scores)
    if not rule.limited:
        return scores
    grouped = scores.unflatten(-1, (rule.groups, -1))  # [N, groups, experts of a group]
    if rule.group_score == "max":
        group_scores = grouped.amax(dim=-1)
    else:
        group_scores = grouped.topk(2, dim=-1).values.sum(dim=-1)
    best = group_scores.topk(rule.top_groups, dim=-1).indices
    outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, best, False)
    return grouped.masked_fill(outside[..., None], float("-inf")).flatten(-2)
