"""Normalisation over the last dimension: RMSNorm and LayerNorm.

`norm(x)` normalises. `norm(x, residual)` is the residual addition and the norm in one call, which
the compiler puts where an equation `x = x + f(...)` is followed by a norm: it returns
`(norm(residual + x), residual + x)`, bit for bit what the two steps give.

A norm over a stream that tensor-parallel ranks share (QK-norm over the full width) takes its means
over all of them; its weight is split as the stream is. A norm over heads that each have a weight of
their own (`BuildContext.heads`) has a weight [heads, width], split by heads.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import ShardDim
from assembler.blocks.roles import BlockRole
from assembler.errors import SpecError
from assembler.kernels.norms import NormResult, layer_norm, rms_norm
from assembler.kernels.norms_torch import weigh_layer, weigh_rms

NormSpec: TypeAlias = Annotated[Any, BlockRole("norm")]
"""A field that holds a norm block, e.g. `{block: RMSNorm, eps: 1.0e-6}`."""


class _Norm(nn.Module):
    """What the norms share: what they span, whole or split over ranks, and the fused form."""

    role: ClassVar[str] = "norm"

    def __init__(
        self, ctx: BuildContext, eps: float, offset: int, *, weight: bool, bias: bool
    ) -> None:
        super().__init__()
        if offset and not weight:
            raise SpecError(f"{ctx.path}: offset {offset} is added to a weight, which is false")
        self.width = ctx.hidden_size
        self.part, self.heads = ctx.part, ctx.heads
        self.tp = ctx.tp
        self.eps = eps
        self.offset = offset
        self.split = ctx.part is not None and ctx.tp.size > 1
        rows = self.width if ctx.part is None else len(ctx.tp.local_rows((ctx.part,), ctx.path)[0])
        self.shape = (rows,)  # what this rank normalises
        shape = self.shape
        if ctx.heads is not None:
            (heads,) = ctx.tp.local_rows((ctx.heads.whole_units(),), ctx.path)
            shape = (len(heads), *shape)
        for leaf, present in (("weight", weight), ("bias", bias)):
            self.register_parameter(leaf, nn.Parameter(torch.empty(shape)) if present else None)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> NormResult:
        """[..., width] -> the same shape, or with a residual the pair (normed sum, sum)."""
        if not self.split:
            return self._normalise(x, residual)
        if residual is None:
            return self._normalise_share(x)
        total = residual + x
        return self._normalise_share(total), total

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds all of it, or its rows of the stream, or its heads."""
        layout = ShardDim("replicated", (self.width,))
        if self.part is not None:
            layout = ShardDim("column", (self.width,), 0, (self.part,))
        elif self.heads is not None:
            heads = self.heads.whole_units()
            layout = ShardDim("column", (heads.size, self.width), 0, (heads,))
        return {leaf: layout for leaf, value in self._parameters.items() if value is not None}

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.shape if self.weight is None else self.weight.shape))
        leaves = [leaf for leaf, value in self._parameters.items() if value is not None]
        return f"{shape}, eps={self.eps}, offset={self.offset}, {' and '.join(leaves) or 'bare'}"


def norm_fuses(norm: nn.Module) -> bool:
    """Whether a kernel may do what `norm` does instead of calling it.

    Not if it is of an unknown kind, takes means over several ranks, or somebody listens (hooks).
    """
    known = type(norm) in (RMSNorm, LayerNorm) and not norm.split
    return known and not (norm._forward_hooks or norm._forward_pre_hooks)


class RMSNorm(_Norm):
    """x / sqrt(mean(x²) + eps) * (offset + weight) (Zhang and Sennrich, 2019), in float32.

    With `offset: 0` the result is cast back to the input's dtype before the weight multiplies it
    (Llama's order); with `offset: 1` the sum `1 + weight` is computed and applied in float32
    (Gemma's). The two differ in half precision only.

    Args:
        eps: Added to the mean square before the root; `rms_norm_eps` in most configs.
        offset: Added to the stored weight: 1 for checkpoints that store weight - 1 (Gemma), else 0.
        weight: Whether there is a weight; false for models that only normalise (nanochat).
    """

    def __init__(
        self,
        ctx: BuildContext,
        *,
        eps: Annotated[float, Field(ge=0)],
        offset: Literal[0, 1] = 0,
        weight: bool = True,
    ) -> None:
        super().__init__(ctx, eps, offset, weight=weight, bias=False)

    def _normalise(self, x: torch.Tensor, residual: torch.Tensor | None) -> NormResult:
        return rms_norm(x, residual, self.weight, self.eps, self.offset)

    def _normalise_share(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(self.tp.mean(wide.square(), self.part) + self.eps)
        return weigh_rms(normed, self.weight, self.offset, x.dtype)


class LayerNorm(_Norm):
    """(x - mean) / sqrt(var(x) + eps) * (offset + weight) + bias (Ba et al., 2016), in float32.

    The sum `1 + weight` is rounded to the weight's dtype, as where it comes from (LayerNorm1P).

    Args:
        eps: Added to the variance before the root; `layer_norm_eps` or `layer_norm_epsilon`.
        bias: Whether a bias is added; false for models that only scale (Cohere, MPT).
        weight: Whether there is a weight; false, with `bias: false`, for a bare norm (OLMo).
        offset: Added to the stored weight: 1 for checkpoints that store weight - 1 (Nemotron).
    """

    def __init__(
        self,
        ctx: BuildContext,
        *,
        eps: Annotated[float, Field(ge=0)] = 1e-5,
        bias: bool = True,
        weight: bool = True,
        offset: Literal[0, 1] = 0,
    ) -> None:
        super().__init__(ctx, eps, offset, weight=weight, bias=bias)

    def _normalise(self, x: torch.Tensor, residual: torch.Tensor | None) -> NormResult:
        return layer_norm(x, residual, self.weight, self.bias, self.eps, self.offset)

    def _normalise_share(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        centred = wide - self.tp.mean(wide, self.part)
        variance = self.tp.mean(centred.square(), self.part)
        normed = centred * torch.rsqrt(variance + self.eps)
        return weigh_layer(normed, self.weight, self.bias, self.offset, x.dtype)
