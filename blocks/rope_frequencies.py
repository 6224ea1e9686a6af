"""The frequencies and the amplitude of every RoPE type, as functions of its settings.

A frequency is in radians a token; `dim` is the number of rotated dimensions of a head and one
frequency turns two of them, so every result has `dim // 2`. All of it is float32 on the CPU: the
same values then reach every device.
"""

from __future__ import annotations

import math

import torch

from assembler.blocks.rope_settings import RopeSettings


def frequencies(settings: RopeSettings, dim: int) -> torch.Tensor:
    """[dim // 2] frequencies for texts of ordinary length; float32, on the CPU.

    `dynamic` stretches them beyond `max_position_embeddings` (`dynamic_frequencies`), `longrope`
    beyond `original_max_position_embeddings` (`long_frequencies`).
    """
    plain = 1.0 / _wavelengths(settings.theta, dim)
    match settings.type:
        case "default" | "dynamic":
            return plain
        case "linear":
            return plain / settings.factor
        case "ntk_alpha":
            return 1.0 / _wavelengths(settings.theta * settings.alpha ** (dim / (dim - 2)), dim)
        case "llama3":
            return _llama3(settings, plain)
        case "yarn":
            return _yarn(settings, dim)
        case "longrope":
            return _longrope(settings, settings.short_factor, dim)


def long_frequencies(settings: RopeSettings, dim: int) -> torch.Tensor:
    """[dim // 2] frequencies of `longrope` for texts above the original length."""
    return _longrope(settings, settings.long_factor, dim)


def dynamic_frequencies(settings: RopeSettings, dim: int, lengths: torch.Tensor) -> torch.Tensor:
    """[..., dim // 2] frequencies of `dynamic` (NTK-aware) for texts of `lengths` [...] tokens.

    theta grows with the length beyond `max_position_embeddings`; up to it this is `frequencies`.
    """
    excess = (lengths - settings.max_position_embeddings).clamp(min=0).float()
    growth = 1.0 + settings.factor * excess / settings.max_position_embeddings
    theta = settings.theta * growth ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=lengths.device) / dim
    return 1.0 / theta[..., None] ** exponents


def attention_factor(settings: RopeSettings) -> float:
    """What multiplies cos and sin, so that attention keeps its temperature when stretched.

    `longrope` may have another for texts above the original length, `long_mscale`.
    """
    if settings.attention_factor is not None:
        return settings.attention_factor
    if settings.short_mscale is not None:
        return settings.short_mscale
    if settings.type == "yarn":
        if settings.mscale and settings.mscale_all_dim:
            return _yarn_scale(settings.stretch, settings.mscale) / _yarn_scale(
                settings.stretch, settings.mscale_all_dim
            )
        return _yarn_scale(settings.stretch, 1.0)
    if settings.type == "longrope" and settings.stretch > 1:
        original = settings.original_max_position_embeddings
        return math.sqrt(1 + math.log(settings.stretch) / math.log(original))
    return 1.0


def score_factor(settings: RopeSettings | None) -> float:
    """What yarn's `mscale_all_dim` multiplies the scores of latent attention by (DeepSeek-V2)."""
    if settings is None or not settings.mscale_all_dim:
        return 1.0
    return _yarn_scale(settings.stretch, settings.mscale_all_dim) ** 2


def _wavelengths(theta: float, dim: int) -> torch.Tensor:
    """[dim // 2] tokens per radian, from 1 up to almost theta."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return theta**exponents


def _llama3(settings: RopeSettings, plain: torch.Tensor) -> torch.Tensor:
    """Stretch the slow frequencies by the factor, keep the fast ones, blend between (Llama 3.1)."""
    low, high = settings.low_freq_factor, settings.high_freq_factor
    turns = settings.original_max_position_embeddings * plain / (2 * math.pi)
    if low == high:  # no blend (Llama 4 Scout)
        keep = (turns > low).float()
    else:
        keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (keep + (1 - keep) / settings.factor)


def _yarn(settings: RopeSettings, dim: int) -> torch.Tensor:
    """Blend stretched and plain frequencies by how often each turns within the original length."""

    def dimension_of(turns: float) -> float:
        """Where in 0..dim // 2 a frequency makes `turns` turns within the original length."""
        wavelength = settings.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(settings.theta))

    first = dimension_of(settings.beta_fast or 32)
    last = dimension_of(settings.beta_slow or 1)
    if settings.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001  # a step instead of a division by zero
    index = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    stretched = ((index - first) / (last - first)).clamp(0, 1)
    wavelengths = _wavelengths(settings.theta, dim)
    return stretched / (settings.stretch * wavelengths) + (1 - stretched) / wavelengths


def _longrope(settings: RopeSettings, factors: tuple[float, ...], dim: int) -> torch.Tensor:
    """Stretch each frequency by its own factor, found by search (LongRoPE)."""
    stretch = torch.tensor(factors, dtype=torch.float32, device="cpu")
    return 1.0 / (stretch * _wavelengths(settings.theta, dim))


def _yarn_scale(stretch: float, weight: float) -> float:
    return 0.1 * weight * math.log(stretch) + 1.0 if stretch > 1 else 1.0
