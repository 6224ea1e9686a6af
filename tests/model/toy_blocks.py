"""Small blocks to try the language and the compiler on, without the ones it ships."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from assembler.blocks.context import BuildContext, CacheSpec, ForwardContext
from assembler.blocks.norms import LayerNorm, NormSpec, RMSNorm
from assembler.model.registry import BlockRegistry


class Table(BaseModel):
    """Settings that an interpolation fills as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: str = "default"
    theta: float = 1.0
    partial: float | None = None


class Embed(nn.Module):
    """A token table."""

    role: ClassVar[str] = "embedding"

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ctx.vocab_size, ctx.hidden_size))

    def forward(self, tokens, factor=1.0):
        x = nn.functional.embedding(tokens, self.weight)
        return x if factor == 1.0 else x * factor


class Mix(nn.Module):
    """Stands for attention: mixes over the length, reads the context.

    Args:
        heads: how many
            heads there are.
        norm: inner norm.
    """

    role: ClassVar[str] = "attention"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        heads: Annotated[int, Field(gt=0)],
        norm: NormSpec | None = None,
        table: Table | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.window, self.table = window, table
        self.weight = nn.Parameter(torch.empty(ctx.hidden_size, ctx.hidden_size))
        if norm is not None:
            self.norm = ctx.child(norm, "norm")

    def cache_spec(self) -> CacheSpec:
        return CacheSpec(1, 1)

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        return (x.cumsum(-2) / (ctx.positions + 1.0)[:, None]) @ self.weight


class Feed(nn.Module):
    """Stands for an MLP."""

    role: ClassVar[str] = "mlp"

    def __init__(
        self, ctx: BuildContext, *, size: int, activation: Literal["silu", "relu"] = "silu"
    ) -> None:
        super().__init__()
        self.up = nn.Linear(ctx.hidden_size, size)
        self.down = nn.Linear(size, ctx.hidden_size)
        self.activation = getattr(nn.functional, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(x)))


class Head(nn.Module):
    """Projects to the vocabulary."""

    role: ClassVar[str] = "head"

    def __init__(self, ctx: BuildContext, *, tied: bool = False) -> None:
        super().__init__()
        self.tied = tied
        weight = None if tied else nn.Parameter(torch.empty(ctx.vocab_size, ctx.hidden_size))
        self.register_parameter("weight", weight)

    def tie(self, embedding: Embed) -> None:
        self.weight = embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


TOYS = BlockRegistry([Embed, Mix, Feed, Head, RMSNorm, LayerNorm])
