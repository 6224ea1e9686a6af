"""The mixture of experts: a feed-forward block of which each token uses a few parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.context import BuildContext, Routing
from assembler.blocks.roles import BlockRole
from assembler.errors import SpecError

RouterSpec: TypeAlias = Annotated[Any, BlockRole("router")]
"""A field that holds a router block, e.g. `{block: Router, scores: softmax, normalise: true}`."""

ExpertsSpec: TypeAlias = Annotated[Any, BlockRole("experts")]
"""A field that holds the block of all experts."""


class MoE(nn.Module):
    """A sparsely gated mixture of experts (Shazeer et al., 2017): top_k of num_experts a token.

    Experts that every token uses are blocks of their own beside it, added in the wiring:
    `x = x + moe(h) + shared(h)`.

    Args:
        num_experts: Experts a token can choose from.
        top_k: Experts it chooses, `num_experts_per_tok` in most configs.
        router: Block that chooses and weighs them.
        experts: Block of the experts themselves.
        weight_on: What the weights multiply: an expert's "output" or its "input" (Llama 4).
    """

    role: ClassVar[str] = "mlp"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        num_experts: Annotated[int, Field(gt=0)],
        top_k: Annotated[int, Field(gt=0)],
        router: RouterSpec,
        experts: ExpertsSpec,
        weight_on: Literal["output", "input"] = "output",
    ) -> None:
        super().__init__()
        if top_k > num_experts:
            raise SpecError(f"{ctx.path}: top_k {top_k} is more than num_experts {num_experts}")
        inside = replace(ctx, routing=Routing(num_experts, top_k))
        self.router = inside.child(router, "router")
        self.experts = inside.child(experts, "experts")
        self.weigh_input = weight_on == "input"
        self.tp = ctx.tp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        rows = x.flatten(0, -2)
        weights, chosen = self.router(rows)
        out = self.experts(rows, weights, chosen, self.weigh_input)
        return self.tp.all_reduce(out).view_as(x)
