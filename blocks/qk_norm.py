"""The norms of queries and keys (Henry et al., 2020): over each head, or over all of them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import nn

from assembler.blocks.context import BuildContext
from assembler.blocks.norms import NormSpec
from assembler.blocks.parallel import Part

QKNormOver: TypeAlias = Literal["head", "each_head", "full"]


def make_qk_norm(
    ctx: BuildContext, spec: NormSpec | None, over: QKNormOver, part: Part
) -> nn.Module | None:
    """The norm `<part's name>_norm` of the heads in `part`, whose unit is a head; None for none.

    Its weight is [head_dim], shared by all heads ("head"), [heads, head_dim] ("each_head") or
    [heads * head_dim] ("full").
    """
    if spec is None:
        return None
    name = f"{part.name}_norm"
    if over == "full":
        return ctx.child(spec, name, part=part)
    return ctx.child(spec, name, width=part.unit, heads=part if over == "each_head" else None)


def normalise(norm: nn.Module, heads: torch.Tensor, over: QKNormOver) -> torch.Tensor:
    """`heads` [..., H, D], normed."""
    if over != "full":
        return norm(heads)
    return norm(heads.flatten(-2)).view(heads.shape)
