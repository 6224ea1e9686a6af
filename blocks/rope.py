"""Rotary position embeddings: the tables of a pass and the rotation itself.

RoPE (RoFormer, Su et al., 2021) turns pairs of dimensions of every query and key head by an angle
that grows with the position. Which two dimensions are a pair is the `style`: "half" pairs d with
d + dim / 2 (GPT-NeoX, Llama on the Hub), "half_reversed" too but turns by the negative angle
(nanochat), "interleaved" pairs 2d with 2d + 1 and leaves them in place (GPT-J, GLM, Cohere). Angles
are float32; cos and sin are cast to the activations' dtype.

Types that depend on the length of the text (`dynamic`, `longrope`) look at the length of the
sequence each token belongs to, never at its neighbours in the batch, so a request gets the same
logits whoever it is batched with. Keys keep the rotation they were cached with: a sequence that
grows over the border while decoding mixes both, as it does in every cached implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.blocks.rope_frequencies import (
    attention_factor,
    dynamic_frequencies,
    frequencies,
    long_frequencies,
)
from assembler.blocks.rope_settings import RopeSettings, RopeStyle, RopeType
from assembler.errors import SpecError
from assembler.kernels.rotary import apply_rotary

__all__ = ["RopeSettings", "RopeStyle", "RopeType", "RotaryEmbedding", "apply_rotary"]


def rotary_dim(settings: RopeSettings, head_dim: int, path: str) -> int:
    """How many dimensions of a head turn; raises `SpecError` if the settings do not fit it."""
    dim = int(head_dim * settings.partial)
    if dim < 2 or dim % 2:
        raise SpecError(
            f"{path}: partial {settings.partial} of head_dim {head_dim} gives {dim} rotated "
            "dimensions; RoPE turns pairs, so it needs an even number"
        )
    if settings.type in ("dynamic", "ntk_alpha") and dim == 2:
        raise SpecError(f"{path}: rope type '{settings.type}' needs more than 2 rotated dimensions")
    if settings.type == "longrope" and len(settings.short_factor) != dim // 2:
        raise SpecError(
            f"{path}: short_factor and long_factor have {len(settings.short_factor)} numbers; "
            f"{dim} rotated dimensions need {dim // 2}"
        )
    return dim


class RotaryEmbedding(nn.Module):
    """The cos and sin tables of a pass, computed once for all blocks with equal settings.

    Its buffers are float32 whatever the model's dtype and in no checkpoint: they are recomputed
    whenever the module is moved or cast.
    """

    inv_freq: torch.Tensor  # [dim // 2] radians a token
    long_inv_freq: torch.Tensor | None  # the same for long texts (longrope)

    def __init__(self, settings: RopeSettings, dim: int) -> None:
        """`dim`: rotated dimensions of a head (`rotary_dim`)."""
        super().__init__()
        self.settings = settings
        self.dim = dim
        self.style = settings.style
        self.attention_factor = attention_factor(settings)
        self._key = f"rope {dim} {settings.model_dump_json()}"
        self.register_buffer("inv_freq", None, persistent=False)
        self.register_buffer("long_inv_freq", None, persistent=False)
        self.reset_buffers(torch.empty(0).device)

    @property
    def length_border(self) -> int | None:
        """Sequences of up to this many tokens are turned alike; None: all of them are."""
        if self.settings.type == "dynamic":
            return self.settings.max_position_embeddings
        if self.settings.type == "longrope":
            return self.settings.original_max_position_embeddings
        return None

    def reset_buffers(self, device: torch.device | str) -> None:
        """Recompute the frequencies on `device`, e.g. after the module left the meta device."""
        self.inv_freq = frequencies(self.settings, self.dim).to(device)
        if self.settings.type == "longrope":
            self.long_inv_freq = long_frequencies(self.settings, self.dim).to(device)

    def forward(self, ctx: ForwardContext, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each [tokens, 1, dim] of `dtype`, for `apply_rotary`; 1 is for the heads.

        sin carries the minus sign of the rotation: each of its numbers multiplies the *partner* of
        the dimension it stands at.
        """
        return ctx.once((self._key, dtype), lambda: self._tables(ctx, dtype))

    def _tables(self, ctx: ForwardContext, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        angles = ctx.positions[..., None].float() * self._frequencies_of(ctx.sequence_lengths)
        cos, sin = angles.cos(), angles.sin()
        if self.style == "half_reversed":
            sin = -sin
        if self.style != "interleaved":
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        else:
            cos = torch.stack((cos, cos), -1).flatten(-2)
            sin = torch.stack((-sin, sin), -1).flatten(-2)
        amplitude = self._amplitude_of(ctx.sequence_lengths)
        if amplitude is not None:
            cos, sin = cos * amplitude, sin * amplitude
        return cos.to(dtype).unsqueeze(-2), sin.to(dtype).unsqueeze(-2)

    def _frequencies_of(self, lengths: torch.Tensor) -> torch.Tensor:
        """[..., dim // 2] frequencies for tokens of sequences of `lengths` [...]."""
        if self.settings.type == "dynamic":
            return dynamic_frequencies(self.settings, self.dim, lengths)
        if self.long_inv_freq is not None:
            return torch.where(self._is_long(lengths), self.long_inv_freq, self.inv_freq)
        return self.inv_freq

    def _amplitude_of(self, lengths: torch.Tensor) -> torch.Tensor | float | None:
        """What multiplies cos and sin of sequences of `lengths` [...]; None for nothing."""
        if self.settings.long_mscale is not None:
            factors = torch.where(
                self._is_long(lengths), self.settings.long_mscale, self.attention_factor
            )
            return factors.float()
        return None if self.attention_factor == 1.0 else self.attention_factor

    def _is_long(self, lengths: torch.Tensor) -> torch.Tensor:
        """[..., 1]: whether `longrope` takes a text for a long one."""
        return lengths[..., None] > self.settings.original_max_position_embeddings

    def _apply(self, fn: Any, recurse: bool = True) -> RotaryEmbedding:
        """Follow `.to(...)` to the device but not to a dtype: half-precision angles drift."""
        super()._apply(fn, recurse)
        self.reset_buffers(self.inv_freq.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"type={self.settings.type}, theta={self.settings.theta}, dim={self.dim}, {self.style}"
        )
