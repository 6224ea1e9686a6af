"""Normalisation over the last dimension: RMSNorm and LayerNorm.

`norm(x)` normalises. `norm(x, residual)` is the residual addition and the norm in one call, which
the compiler puts where an equation `x = x + f(...)` is followed by a norm: it returns
`(norm(residual + x), residual + x)`, bit for bit what the two steps give.

A norm over a stream that tensor-parallel ranks share (QK-norm over the full width) takes its means
over all of them; its weight is split as the stream is.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import ShardDim
from assembler.blocks.roles import BlockRole

NormSpec: TypeAlias = Annotated[Any, BlockRole("norm")]
"""A field that holds a norm block, e.g. `{block: RMSNorm, eps: 1.0e-6}`."""

NormResult: TypeAlias = "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"


class _Norm(nn.Module):
    """What the norms share: the width they span, whole or split over ranks, and the fused form."""

    role: ClassVar[str] = "norm"

    def __init__(self, ctx: BuildContext, eps: float, leaves: tuple[str, ...]) -> None:
        super().__init__()
        self.width = ctx.hidden_size
        self.part = ctx.part
        self.tp = ctx.tp
        self.eps = eps
        self.split = ctx.part is not None and ctx.tp.size > 1
        self.shape = (self.width,)
        if self.split:
            (rows,) = ctx.tp.local_rows((ctx.part,), ctx.path)
            self.shape = (len(rows),)
        for leaf in ("weight", "bias"):
            weight = nn.Parameter(torch.empty(self.shape)) if leaf in leaves else None
            self.register_parameter(leaf, weight)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> NormResult:
        """[..., width] -> the same shape, or with a residual the pair (normed sum, sum)."""
        normalise = self._normalise_share if self.split else self._normalise
        if residual is None:
            return normalise(x)
        total = residual + x
        return normalise(total), total

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds all of it, or its rows of the stream that the ranks share."""
        layout = ShardDim("replicated", (self.width,))
        if self.part is not None:
            layout = ShardDim("column", (self.width,), 0, (self.part,))
        return {leaf: layout for leaf, value in self._parameters.items() if value is not None}


class RMSNorm(_Norm):
    """x / sqrt(mean(x²) + eps) * (offset + weight) (Zhang and Sennrich, 2019), in float32.

    With `offset: 0` the result is cast back to the input's dtype before the weight multiplies it
    (Llama's order); with `offset: 1` the sum `1 + weight` is computed and applied in float32
    (Gemma's). The two differ in half precision only.

    Args:
        eps: Added to the mean square before the root; `rms_norm_eps` in most configs.
        offset: Added to the stored weight: 1 for checkpoints that store weight - 1 (Gemma), else 0.
    """

    def __init__(
        self,
        ctx: BuildContext,
        *,
        eps: Annotated[float, Field(ge=0)],
        offset: Literal[0, 1] = 0,
    ) -> None:
        super().__init__(ctx, eps, ("weight",))
        self.offset = offset

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        if self.offset:
            weight = self.weight.float() + self.offset
            return F.rms_norm(x.float(), self.shape, weight, self.eps).type_as(x)
        if x.dtype == torch.float32:  # no cast between the two steps, so one call does both
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        return F.rms_norm(x, self.shape, None, self.eps) * self.weight

    def _normalise_share(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(self.tp.mean(wide.square(), self.part) + self.eps)
        if self.offset:
            return (normed * (self.weight.float() + self.offset)).type_as(x)
        return normed.type_as(x) * self.weight

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, eps={self.eps}, offset={self.offset}"


class LayerNorm(_Norm):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al., 2016), in float32.

    Args:
        eps: Added to the variance before the root; `layer_norm_eps` or `layer_norm_epsilon`.
        bias: Whether a bias is added; false for models that only scale (Cohere, MPT).
    """

    def __init__(
        self, ctx: BuildContext, *, eps: Annotated[float, Field(ge=0)] = 1e-5, bias: bool = True
    ) -> None:
        super().__init__(ctx, eps, ("weight", "bias") if bias else ("weight",))

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    def _normalise_share(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        centred = wide - self.tp.mean(wide, self.part)
        normed = centred * torch.rsqrt(self.tp.mean(centred.square(), self.part) + self.eps)
        normed = normed * self.weight.float()
        return (normed if self.bias is None else normed + self.bias.float()).type_as(x)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, eps={self.eps}, bias={self.bias is not None}"
