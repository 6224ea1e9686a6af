"""Linear layers: a plain one for equations, and the two that tensor parallelism cuts.

All are `nn.Linear`s over this rank's slice, so adapters, quantisers and compilers that look for
`nn.Linear` find them. The scheme is Megatron-LM's (Shoeybi et al., 2019): a column-parallel layer,
elementwise work on its local outputs, a row-parallel layer, one all-reduce. The plain layer is
whole on every rank.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import Part, ShardDim, TensorParallel


class _LocalLinear(nn.Linear):
    """An `nn.Linear` whose weights are left unset: a checkpoint fills them."""

    def reset_parameters(self) -> None:
        """Draw no random numbers, which a load would overwrite."""


class Linear(_LocalLinear):
    """A linear layer between streams: gates (one feature), changes of width (OPT-350m).

    Args:
        in_size: Width of the stream it reads; null means hidden_size.
        out_size: Width of the stream it gives; null means hidden_size.
        bias: Whether it adds a bias.
    """

    role: ClassVar[str] = "linear"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        in_size: Annotated[int, Field(gt=0)] | None = None,
        out_size: Annotated[int, Field(gt=0)] | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(in_size or ctx.hidden_size, out_size or ctx.hidden_size, bias=bias)

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds all of it."""
        return {
            leaf: ShardDim("replicated", tuple(value.shape))
            for leaf, value in self._parameters.items()
            if value is not None
        }


class ReplicatedLinear(_LocalLinear):
    """Named projections of one input, fused into a single weight that every rank holds whole."""

    def __init__(self, in_features: int, parts: tuple[Part, ...], bias: bool) -> None:
        super().__init__(in_features, sum(part.size for part in parts), bias=bias)
        self.parts = parts

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds all of it; the parts are for the map to name."""
        return {
            leaf: ShardDim("replicated", tuple(value.shape), parts=self.parts)
            for leaf, value in self._parameters.items()
            if value is not None
        }


class ColumnLinear(_LocalLinear):
    """Named projections of one input, fused into a single weight [sum of local rows, in_features].

    The output of a rank is the concatenation of its rows of every part, in the order of `parts`;
    `output.split(layer.local_sizes, dim=-1)` gives them back as views.
    """

    def __init__(
        self,
        in_features: int,
        parts: tuple[Part, ...],
        bias: bool,
        tp: TensorParallel,
        path: str = "",
    ) -> None:
        """Raises `SpecError`, naming `path`, if the group cannot share the parts."""
        local_sizes = tuple(len(rows) for rows in tp.local_rows(parts, path))
        super().__init__(in_features, sum(local_sizes), bias=bias)
        self.parts = parts
        self.local_sizes = local_sizes

    def shard_dims(self) -> dict[str, ShardDim]:
        """Rows are split, part by part; the bias goes with them."""
        rows = sum(part.size for part in self.parts)
        dims = {"weight": ShardDim("column", (rows, self.in_features), 0, self.parts)}
        if self.bias is not None:
            dims["bias"] = ShardDim("column", (rows,), 0, self.parts)
        return dims

    def extra_repr(self) -> str:
        parts = ", ".join(
            f"{p.name}={n}" for p, n in zip(self.parts, self.local_sizes, strict=True)
        )
        return f"in_features={self.in_features}, {parts}, bias={self.bias is not None}"


class RowLinear(_LocalLinear):
    """The projection back: each rank multiplies its slice of the input, and the results are summed.

    `part` is the whole input dimension; the weight of a rank is [out_features, its share of it].
    Every rank holds the whole bias and adds it once, after the sum.
    """

    def __init__(
        self, part: Part, out_features: int, bias: bool, tp: TensorParallel, path: str = ""
    ) -> None:
        """Raises `SpecError`, naming `path`, if the group cannot share `part`."""
        (columns,) = tp.local_rows((part,), path)
        super().__init__(len(columns), out_features, bias=bias)
        self.part = part
        self.tp = tp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., local input] -> [..., out_features], summed over the group."""
        if self.tp.size == 1:
            return F.linear(x, self.weight, self.bias)
        y = self.tp.all_reduce(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias

    def shard_dims(self) -> dict[str, ShardDim]:
        """Columns are split; the bias is whole on every rank."""
        shape = (self.out_features, self.part.size)
        dims = {"weight": ShardDim("row", shape, 1, (self.part,))}
        if self.bias is not None:
            dims["bias"] = ShardDim("replicated", (self.out_features,))
        return dims
