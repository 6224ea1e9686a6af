"""Routers: which experts a token goes to, and what each of them counts.

Every router maps x [N, H] to (weights [N, K] float32, chosen [N, K] int64). It is whole on every
tensor-parallel rank, so that all of them choose alike.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from assembler.blocks.context import BuildContext, Routing
from assembler.blocks.parallel import ShardDim
from assembler.errors import SpecError
from assembler.kernels.routing import ChoiceRule, choose_experts

Choice = tuple[torch.Tensor, torch.Tensor]


class ExpertGroups(BaseModel):
    """Settings of group-limited routing (DeepSeek-V2, 2024): experts are taken from few groups."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Annotated[int, Field(gt=0, description="Groups the experts are dealt into, in order.")]
    top: Annotated[int, Field(gt=0, description="Groups that a token may choose from.")]
    score: Literal["max", "top2"] = Field(
        "top2", description="Score of a group: its best expert's (max) or its best two's sum."
    )


class _LinearRouter(nn.Module):
    """What the routers share: a linear layer over all experts, whole on every rank."""

    role: ClassVar[str] = "router"

    def __init__(self, ctx: BuildContext, leaves: tuple[str, ...]) -> None:
        super().__init__()
        self.routing = routing_of(ctx)
        experts = self.routing.num_experts
        self.shapes = {"weight": (experts, ctx.hidden_size)}
        self.shapes |= dict.fromkeys(leaves, (experts,))
        for leaf, shape in self.shapes.items():
            self.register_parameter(leaf, nn.Parameter(torch.empty(shape)))

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds all of it."""
        return {leaf: ShardDim("replicated", shape) for leaf, shape in self.shapes.items()}


class Router(_LinearRouter):
    """Scores of all experts from one linear layer, the best K of them, and their weights.

    softmax with `normalise` is also what routers compute that take the softmax over the chosen
    logits alone (gpt-oss, Granite), sigmoid without `normalise` what those compute that take the
    sigmoid of the chosen logits (Llama 4).

    Args:
        scores: Function of the logits, in float32: softmax over all experts, or sigmoid of each.
        logits_dtype: Whether the linear layer runs in the "model" dtype or in "float32".
        bias: Whether the linear layer adds a bias (gpt-oss).
        selection_bias: Whether a bias is added to the scores for the choice only (DeepSeek-V3).
        groups: Settings of group-limited routing (DeepSeek-V2 and V3); null means none.
        normalise: Whether the weights of a token's experts are divided by their sum.
        min_sum: Least sum to divide by.
        scale: Factor of the weights, after normalising; `routed_scaling_factor` in configs.
    """

    def __init__(
        self,
        ctx: BuildContext,
        *,
        scores: Literal["softmax", "sigmoid"],
        logits_dtype: Literal["model", "float32"] = "model",
        bias: bool = False,
        selection_bias: bool = False,
        groups: ExpertGroups | None = None,
        normalise: bool,
        min_sum: Annotated[float, Field(ge=0)] = 0.0,
        scale: float = 1.0,
    ) -> None:
        flags = {"bias": bias, "selection_bias": selection_bias}
        super().__init__(ctx, tuple(leaf for leaf, wanted in flags.items() if wanted))
        for leaf in flags.keys() - self.shapes.keys():
            self.register_parameter(leaf, None)
        self.softmax = scores == "softmax"
        self.widen = logits_dtype == "float32"
        self.groups = groups if groups is not None and groups.top < groups.count else None
        self.normalise = normalise
        self.min_sum = min_sum
        self.scale = scale
        if groups is not None:
            _check_groups(groups, self.routing, ctx.path)
        limit = self.groups or ExpertGroups(count=1, top=1)
        self.rule = ChoiceRule(
            self.routing.top_k,
            self.softmax,
            normalise,
            min_sum,
            scale,
            groups=limit.count,
            top_groups=limit.top,
            group_score=limit.score,
        )

    def forward(self, x: torch.Tensor) -> Choice:
        """[N, H] -> (weights [N, K] float32, chosen [N, K])."""
        weight, bias = self.weight, self.bias
        if self.widen:
            x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
        return choose_experts(F.linear(x, weight, bias), self.selection_bias, self.rule)

    def extra_repr(self) -> str:
        scores = "softmax" if self.softmax else "sigmoid"
        return f"{self.routing}, {scores}, normalise={self.normalise}, scale={self.scale}"


class SparseMixerRouter(_LinearRouter):
    """SparseMixer-v2 routing (Liu et al., 2024; Phi-3.5-MoE): the best experts one after the other.

    Each one's weight is its softmax among the experts not chosen yet that come close to it, so the
    weights of a token do not add up to 1. This is how the trained router is used; its sampling in
    training is not included.

    Args:
        jitter_eps: Half the relative distance from the best logit within which others are close.
    """

    def __init__(
        self, ctx: BuildContext, *, jitter_eps: Annotated[float, Field(ge=0)] = 0.01
    ) -> None:
        super().__init__(ctx, ())
        self.jitter_eps = jitter_eps

    def forward(self, x: torch.Tensor) -> Choice:
        """[N, H] -> (weights [N, K] float32, chosen [N, K])."""
        logits = F.linear(x, self.weight).float()
        left, weights, chosen = logits, [], []
        for _ in range(self.routing.top_k):
            best, expert = left.max(dim=-1, keepdim=True)
            far = (best - logits) / logits.abs().clamp(min=best) > 2 * self.jitter_eps
            close = left.masked_fill(far, float("-inf"))
            weights.append(close.softmax(dim=-1).gather(-1, expert))
            chosen.append(expert)
            left = left.scatter(-1, expert, float("-inf"))
        return torch.cat(weights, dim=-1), torch.cat(chosen, dim=-1)

    def extra_repr(self) -> str:
        return f"{self.routing}, jitter_eps={self.jitter_eps}"


def routing_of(ctx: BuildContext) -> Routing:
    """How many experts the mixture around the block has; raises `SpecError` outside of one."""
    if ctx.routing is None:
        raise SpecError(f"{ctx.path}: routers and experts stand inside an MoE block only")
    return ctx.routing


def _check_groups(groups: ExpertGroups, routing: Routing, path: str) -> None:
    """Raise `SpecError` if the experts cannot be dealt into these groups."""
    problems = []
    size, rest = divmod(routing.num_experts, groups.count)
    if rest:
        problems.append(f"{groups.count} groups cannot share {routing.num_experts} experts evenly")
    elif groups.score == "top2" and size < 2:
        problems.append(f"score top2 needs groups of at least 2 experts, these have {size}")
    if groups.top > groups.count:
        problems.append(f"groups.top {groups.top} is more than groups.count {groups.count}")
    elif routing.top_k > groups.top * size:
        problems.append(f"top_k {routing.top_k} is more than {groups.top} groups of {size} hold")
    if problems:
        raise SpecError(f"{path}: {'; '.join(problems)}")
