"""ALiBi: attention biases that grow with the distance, in place of position embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from assembler.blocks.parallel import Part, TensorParallel


class AlibiSettings(BaseModel):
    """A penalty on each score, slope * distance, with a slope of each head's own (Press, 2022)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bias: float = Field(
        8.0,
        gt=0,
        description="Of n heads the last has the slope 2 ** -max_bias (MPT: alibi_bias_max).",
    )
    rounded: bool = Field(
        False,
        description="Falcon's way: slopes and biases rounded to bfloat16, biases scaled as scores.",
    )


def alibi_slopes(num_heads: int, max_bias: float) -> torch.Tensor:
    """[num_heads] slopes, float32, on the CPU: 2 ** -(max_bias * (h + 1) / n) for head h of n.

    For a number of heads that is no power of two, those of the next power are dealt out: every
    second one first, then those between.
    """
    power = 2 ** math.ceil(math.log2(num_heads))
    exponents = torch.arange(1, power + 1, dtype=torch.float32, device="cpu") * (max_bias / power)
    slopes = 2.0**-exponents
    if power != num_heads:
        slopes = torch.cat((slopes[1::2], slopes[::2]))[:num_heads]
    return slopes


class Alibi(nn.Module):
    """The slopes of this rank's heads: float32 whatever the model's dtype, in no checkpoint."""

    def __init__(self, settings: AlibiSettings, heads: Part, tp: TensorParallel) -> None:
        """`heads` are the query heads of all ranks, one a row."""
        super().__init__()
        self.settings = settings
        self.num_heads = heads.size
        (self.rows,) = tp.local_rows((heads,), "alibi")
        self.register_buffer("slopes", None, persistent=False)
        self.reset_buffers(torch.empty(0).device)

    def reset_buffers(self, device: torch.device | str) -> None:
        """Recompute the slopes on `device`, e.g. after the module left the meta device."""
        slopes = alibi_slopes(self.num_heads, self.settings.max_bias)
        self.slopes = slopes[self.rows.start : self.rows.stop].to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> Alibi:
        """Follow `.to(...)` to the device but not to a dtype."""
        super()._apply(fn, recurse)
        self.reset_buffers(self.slopes.device)
        return self

    def extra_repr(self) -> str:
        return f"max_bias={self.settings.max_bias}, rounded={self.settings.rounded}"
