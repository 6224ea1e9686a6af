"""The experts of a mixture: feed-forward networks whose weights are stacked in one tensor.

Over a tensor-parallel group every rank holds a slice of every expert, cut as a single feed-forward
block is; the mixture around them sums the ranks once.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.activations import Activation
from assembler.blocks.activations import activation as activation_function
from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import Part, ShardDim
from assembler.blocks.router import routing_of
from assembler.kernels.expert_weights import ExpertWeights
from assembler.kernels.gating import Gating
from assembler.kernels.grouped_mlp import grouped_mlp


class ExpertLinear(nn.Module):
    """The same linear layer of every expert: weight [E, out, in], bias [E, out] or None.

    Column-parallel (`row=False`) it is split by the named parts of its output, row-parallel by the
    one part of its input; a row-parallel bias is whole on every rank.
    """

    def __init__(
        self, ctx: BuildContext, others: int, parts: tuple[Part, ...], bias: bool, row: bool
    ) -> None:
        super().__init__()
        experts = routing_of(ctx).num_experts
        whole = sum(part.size for part in parts)
        local = sum(len(rows) for rows in ctx.tp.local_rows(parts, ctx.path))
        self.parts, self.row = parts, row
        self.whole = (experts, others, whole) if row else (experts, whole, others)
        shape = (experts, others, local) if row else (experts, local, others)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[:2])) if bias else None

    def shard_dims(self) -> dict[str, ShardDim]:
        """Rows (dim 1) or columns (dim 2) of every expert are split."""
        kind, dim = ("row", 2) if self.row else ("column", 1)
        dims = {"weight": ShardDim(kind, self.whole, dim, self.parts)}
        if self.bias is not None and self.row:
            dims["bias"] = ShardDim("replicated", self.whole[:2])
        elif self.bias is not None:
            dims["bias"] = ShardDim("column", self.whole[:2], 1, self.parts)
        return dims

    def extra_repr(self) -> str:
        parts = ", ".join(part.name for part in self.parts)
        return f"{tuple(self.weight.shape)}, {parts}, bias={self.bias is not None}"


class GatedExperts(nn.Module):
    """down(act(gate(x)) * up(x)) of each expert: gated linear units, as GatedMLP.

    Args:
        intermediate_size: Width of one expert's gate and up, in features of the whole model.
        activation: Function of the gate, by its name in the config (`hidden_act`), e.g. silu.
        bias: Whether all three projections of every expert add a bias (gpt-oss).
        limit: Clamp before the activation: gate to at most this, up to within it (gpt-oss,
            MiniMax-M3); null for none.
        up_offset: Added to up before it meets the gate (gpt-oss, MiniMax-M3: 1).
    """

    role: ClassVar[str] = "experts"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        intermediate_size: Annotated[int, Field(gt=0)],
        activation: Activation,
        bias: bool = False,
        limit: Annotated[float, Field(gt=0)] | None = None,
        up_offset: float = 0.0,
    ) -> None:
        super().__init__()
        gate, up = Part("gate", intermediate_size), Part("up", intermediate_size)
        inner = Part("intermediate", intermediate_size)
        self.gate_up = ExpertLinear(ctx, ctx.hidden_size, (gate, up), bias, row=False)
        self.down = ExpertLinear(ctx, ctx.hidden_size, (inner,), bias, row=True)
        self.gating = Gating(activation, activation_function(activation), limit, up_offset)
        self.adds_bias = ctx.tp.rank == 0  # once for the whole group

    def forward(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, weigh_input: bool
    ) -> torch.Tensor:
        """This rank's share of the weighted sum of the chosen experts.

        x [N, H], weights and chosen [N, K] -> [N, H], still to be summed over the group.
        `weigh_input` weighs what goes into an expert instead of what comes out.
        """
        down_bias = self.down.bias if self.adds_bias else None
        experts = ExpertWeights(self.gate_up.weight, self.down.weight, self.gate_up.bias, down_bias)
        return grouped_mlp(x, chosen, weights, experts, self.gating, weigh_input=weigh_input)

    def extra_repr(self) -> str:
        gating = self.gating
        return f"activation={gating.name}, limit={gating.limit}, up_offset={gating.up_offset}"
