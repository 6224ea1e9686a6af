"""Normalisation over the last dimension: RMSNorm and LayerNorm.

`norm(x)` normalises. `norm(x, residual)` is the residual addition and the norm in one call, which
the compiler puts where an equation `x = x + f(...)` is followed by a norm: it returns
`(norm(residual + x), residual + x)`, bit for bit what the two steps give.
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


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * (offset + weight) (Zhang and Sennrich, 2019), in float32.

    With `offset: 0` the result is cast back to the input's dtype before the weight multiplies it
    (Llama's order); with `offset: 1` the sum `1 + weight` is computed and applied in float32
    (Gemma's). The two differ in half precision only.

    Args:
        eps: Added to the mean square before the root; `rms_norm_eps` in most configs.
        offset: Added to the stored weight: 1 for checkpoints that store weight - 1 (Gemma), else 0.
    """

    role: ClassVar[str] = "norm"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        eps: Annotated[float, Field(ge=0)],
        offset: Literal[0, 1] = 0,
    ) -> None:
        super().__init__()
        self.shape = (ctx.hidden_size,)
        self.eps = eps
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(self.shape))

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> NormResult:
        """[..., width] -> the same shape, or with a residual the pair (normed sum, sum)."""
        if residual is None:
            return self._normalise(x)
        total = residual + x
        return self._normalise(total), total

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        if self.offset:
            weight = self.weight.float() + self.offset
            return F.rms_norm(x.float(), self.shape, weight, self.eps).type_as(x)
        if x.dtype == torch.float32:  # no cast between the two steps, so one call does both
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        return F.rms_norm(x, self.shape, None, self.eps) * self.weight

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds the whole weight."""
        return {"weight": ShardDim("replicated", self.shape)}

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, eps={self.eps}, offset={self.offset}"


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al., 2016), in float32.

    Args:
        eps: Added to the variance before the root; `layer_norm_eps` or `layer_norm_epsilon`.
        bias: Whether a bias is added; false for models that only scale (Cohere, MPT).
    """

    role: ClassVar[str] = "norm"

    def __init__(
        self, ctx: BuildContext, *, eps: Annotated[float, Field(ge=0)] = 1e-5, bias: bool = True
    ) -> None:
        super().__init__()
        self.shape = (ctx.hidden_size,)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(self.shape))
        self.register_parameter("bias", nn.Parameter(torch.empty(self.shape)) if bias else None)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> NormResult:
        """[..., width] -> the same shape, or with a residual the pair (normed sum, sum)."""
        if residual is None:
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        total = residual + x
        return F.layer_norm(total, self.shape, self.weight, self.bias, self.eps), total

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds the whole weight and bias."""
        names = ("weight",) if self.bias is None else ("weight", "bias")
        return {name: ShardDim("replicated", self.shape) for name in names}

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, eps={self.eps}, bias={self.bias is not None}"
