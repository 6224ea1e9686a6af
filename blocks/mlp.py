"""Feed-forward blocks: the gated one of most present models and the plain one before it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.activations import AnyActivation, make_activation
from assembler.blocks.context import BuildContext
from assembler.blocks.linear import ColumnLinear, RowLinear
from assembler.blocks.norms import NormSpec
from assembler.blocks.parallel import Part
from assembler.kernels.gating import gated


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)): a gated linear unit (Shazeer, 2020), SwiGLU when act is silu.

    Args:
        intermediate_size: Width of gate and up, in features of the whole model.
        activation: Function of the gate, by its name in the config (`hidden_act`), e.g. silu, or a
            block.
        bias: Whether all three projections add a bias.
        limit: Clamp before the activation: gate to at most this, up to within it (MiniMax-M3,
            DeepSeek-V4); null for none.
        up_offset: Added to up before it meets the gate (MiniMax-M3: 1).
        inner_norm: Norm block applied to what down reads (BitNet).
    """

    role: ClassVar[str] = "mlp"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        intermediate_size: Annotated[int, Field(gt=0)],
        activation: AnyActivation,
        bias: bool = False,
        limit: Annotated[float, Field(gt=0)] | None = None,
        up_offset: float = 0.0,
        inner_norm: NormSpec | None = None,
    ) -> None:
        super().__init__()
        gate, up = Part("gate", intermediate_size), Part("up", intermediate_size)
        inner = Part("intermediate", intermediate_size)
        self.gate_up = ColumnLinear(
            ctx.hidden_size, (gate, up), bias, ctx.tp, f"{ctx.path}.gate_up"
        )
        self.down = RowLinear(inner, ctx.hidden_size, bias, ctx.tp, f"{ctx.path}.down")
        self.act = make_activation(ctx, activation, inner)
        self.activation = activation
        self.limit = limit
        self.up_offset = up_offset
        self.inner_norm = ctx.child(inner_norm, "inner_norm", part=inner) if inner_norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        inner = gated(gate, up, self.act, self.activation, self.limit, self.up_offset)
        return self.down(inner if self.inner_norm is None else self.inner_norm(inner))

    def extra_repr(self) -> str:
        return f"activation={self.activation}, limit={self.limit}, up_offset={self.up_offset}"


class MLP(nn.Module):
    """down(act(up(x))): the feed-forward layer of the first transformer (Vaswani et al., 2017).

    Args:
        intermediate_size: Width between the two projections, in features of the whole model.
        activation: Function between them, by its name in the config, e.g. gelu_new (GPT-2), or a
            block (XIELU).
        bias: Whether both projections add a bias.
    """

    role: ClassVar[str] = "mlp"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        intermediate_size: Annotated[int, Field(gt=0)],
        activation: AnyActivation,
        bias: bool = False,
    ) -> None:
        super().__init__()
        up, inner = Part("up", intermediate_size), Part("intermediate", intermediate_size)
        self.up = ColumnLinear(ctx.hidden_size, (up,), bias, ctx.tp, f"{ctx.path}.up")
        self.down = RowLinear(inner, ctx.hidden_size, bias, ctx.tp, f"{ctx.path}.down")
        self.act = make_activation(ctx, activation, inner)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down(self.act(self.up(x)))

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
