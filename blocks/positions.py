"""Absolute positions: vectors that equations add to the token embeddings."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from assembler.blocks.context import BuildContext, ForwardContext
from assembler.blocks.parallel import ShardDim
from assembler.errors import SpecError

_THETA = 10000.0  # base of the wavelengths


class LearnedPositions(nn.Module):
    """One trained vector a position, to be added to the token embeddings (GPT-2, OPT).

    Args:
        count: Positions the model knows, e.g. `n_positions`; the table has count + offset rows.
        offset: Rows before that of position 0 (2 in OPT, whose table starts with padding).
    """

    role: ClassVar[str] = "position"

    def __init__(
        self,
        ctx: BuildContext,
        *,
        count: Annotated[int, Field(gt=0)],
        offset: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(count + offset, ctx.hidden_size))

    def forward(self, tokens: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """Vectors of the positions: [L, hidden] in a dense pass (for every row), else [T, hidden].

        Raises IndexError (on a CPU) for a position the table does not have.
        """
        rows = ctx.positions + self.offset if self.offset else ctx.positions
        return F.embedding(rows, self.weight)

    def shard_dims(self) -> dict[str, ShardDim]:
        """Every rank holds the whole table."""
        return {"weight": ShardDim("replicated", tuple(self.weight.shape))}

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, offset={self.offset}"


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position, to be added to a stream (Vaswani et al., 2017).

    The sines are the first half of a vector and the cosines the second. Nothing is trained and
    nothing is in a checkpoint; positions have no end.

    Args:
        spacing: Wavelengths of the pairs: "vaswani" runs from 2 pi up to, and without, 10000 * 2 pi
            (CTRL); "tensor2tensor" includes that last one (XGLM).
        offset: Added to every position (2 in XGLM).
    """

    role: ClassVar[str] = "position"

    frequencies: torch.Tensor  # [hidden // 2] radians a token, float32

    def __init__(
        self,
        ctx: BuildContext,
        *,
        spacing: Literal["vaswani", "tensor2tensor"] = "vaswani",
        offset: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        super().__init__()
        if ctx.hidden_size % 2 or ctx.hidden_size < 4:
            raise SpecError(
                f"{ctx.path}: sines and cosines need an even width of at least 4, not "
                f"{ctx.hidden_size}"
            )
        self.half = ctx.hidden_size // 2
        self.spacing = spacing
        self.offset = offset
        self.register_buffer("frequencies", None, persistent=False)
        self.reset_buffers(torch.empty(0).device)

    def reset_buffers(self, device: torch.device | str) -> None:
        """Recompute the frequencies on `device`, e.g. after the module left the meta device."""
        steps = torch.arange(self.half, dtype=torch.float32, device="cpu")
        if self.spacing == "vaswani":
            frequencies = 1.0 / torch.pow(_THETA, steps / self.half)
        else:
            frequencies = torch.exp(steps * -(math.log(_THETA) / (self.half - 1)))
        self.frequencies = frequencies.to(device)

    def forward(self, x: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """Vectors, in the dtype of the stream x, for its tokens: [tokens, hidden]."""
        angles = (ctx.positions + self.offset)[..., None].float() * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1).type_as(x)

    def _apply(self, fn: Any, recurse: bool = True) -> SinusoidalPositions:
        """Follow `.to(...)` to the device but not to a dtype: half-precision angles drift."""
        super()._apply(fn, recurse)
        self.reset_buffers(self.frequencies.device)
        return self

    def extra_repr(self) -> str:
        return f"{2 * self.half}, {self.spacing}, offset={self.offset}"
