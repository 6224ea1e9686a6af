"""Queries that grow with their position, so that attention stays sharp over long texts."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field

from assembler.blocks.context import ForwardContext


class PositionScale(BaseModel):
    """Queries times 1 + beta * log(1 + floor((position + shift) / length)).

    Scalable softmax (Nakanishi, 2025), as Llama 4 and Ministral 3 have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = Field(
        description="Weight of the logarithm: attn_scale (Llama 4), llama_4_scaling_beta (Mistral)."
    )
    length: float = Field(
        gt=0, description="Tokens that are scaled alike: floor_scale, or the pre-training length."
    )
    shift: int = Field(0, ge=0, description="Added to positions: 1 in Llama 4, else 0.")


def position_factors(
    settings: PositionScale, ctx: ForwardContext, dtype: torch.dtype
) -> torch.Tensor:
    """[tokens, 1, 1] of `dtype`: what multiplies the queries [..., tokens, heads, head_dim]."""

    def compute() -> torch.Tensor:
        steps = torch.floor((ctx.positions + settings.shift).float() / settings.length)
        return (1 + settings.beta * torch.log1p(steps)).to(dtype)[:, None, None]

    return ctx.once(("position_scale", settings, dtype), compute)
