"""A gate on what attention read, taken from what the attention block was given."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from assembler.blocks.context import BuildContext
from assembler.blocks.linear import ColumnLinear
from assembler.blocks.roles import BlockRole
from assembler.errors import SpecError
from assembler.kernels.gating import gated

GateSpec: TypeAlias = Annotated[Any, BlockRole("gate")]
"""A field that holds a gate block, e.g. `{block: OutputGate, per: channel}`."""


class OutputGate(nn.Module):
    """activation(proj(x)) times the heads' outputs, before they are projected (Qiu et al., 2025).

    Args:
        per: What has a gate of its own: each "channel" of each head (AFMoE), or each "head" as a
            whole (Step-3.7).
        activation: What makes a gate of the projection: "sigmoid", or "softplus", which has no
            upper bound and so may amplify as well.
    """

    role: ClassVar[str] = "gate"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        per: Literal["channel", "head"] = "channel",
        activation: Literal["sigmoid", "softplus"] = "sigmoid",
    ) -> None:
        super().__init__()
        if ctx.heads is None:
            raise SpecError(
                f"{ctx.path}: OutputGate serves the heads of an attention block: "
                "write it in the block's field 'gate'"
            )
        rows = ctx.heads if per == "channel" else ctx.heads.whole_units()
        self.proj = ColumnLinear(ctx.hidden_size, (rows,), False, ctx.tp, f"{ctx.path}.proj")
        self.per = per
        self.activation = activation
        self.act = torch.sigmoid if activation == "sigmoid" else F.softplus

    def forward(self, x: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """Gate `heads` [..., H, D] by x [..., hidden]."""
        gate = self.proj(x)
        if self.per == "head":
            return heads * self.act(gate).unsqueeze(-1)
        return gated(gate, heads.flatten(-2), self.act, self.activation).view(heads.shape)

    def extra_repr(self) -> str:
        return f"per={self.per}, activation={self.activation}"
