"""Calls of the fused kernels at the shapes of real models, for compiling what they would launch.

They need a process in which Triton compiles: its interpreter excludes that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch

from assembler.kernels import embedding_triton, gated_triton, norms_triton
from assembler.kernels.activation_triton import KNOWN_ACTIVATIONS
from assembler.kernels.head_steps import HeadNorm, HeadSteps, Rotation
from assembler.kernels.latent_kv import LatentNorm
from assembler.kernels.latent_kv_triton import latent_store_kv_triton
from assembler.kernels.rope_kv_triton import rope_store_kv_triton
from assembler.kernels.sampling_torch import RowSettings
from assembler.kernels.sampling_triton import sample_by_number

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def norm(
    width: int,
    dtype: torch.dtype,
    *,
    layer: bool = False,
    offset: int = 0,
    residual: bool = True,
) -> None:
    """A norm behind a residual sum, or by itself."""
    x, weight = torch.empty(5, width, dtype=dtype), torch.empty(width, dtype=dtype)
    leaves = (weight, weight) if layer else (weight,)
    name = "layer_norm" if layer else "rms_norm"
    if residual:
        getattr(norms_triton, f"add_{name}")(x, x, *leaves, 1e-6, offset)
    else:
        getattr(norms_triton, name)(x, *leaves, 1e-6, offset)


def gate(activation: str, dtype: torch.dtype, width: int = 12288, **form: float) -> None:
    """Gate and up side by side, as one projection writes them."""
    halves = torch.empty(5, 2 * width, dtype=dtype).chunk(2, dim=-1)
    gated_triton.gated_triton(*halves, activation, **form)


def heads(
    num_heads: int,
    num_kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    *,
    rotary: int | None = None,
    style: str = "half",
    norm: str = "",
    clip: float | None = None,
    factors: bool = False,
    cache: torch.dtype | None = None,
) -> None:
    """One fused projection; `norm` is "", "rms", "all", "layer" or "each", these two after RoPE."""
    qkv = torch.empty(5, num_heads + 2 * num_kv_heads, dim, dtype=dtype)
    pages = torch.empty(4, 16, num_kv_heads, dim, dtype=cache or dtype)
    layer, whole = norm in ("layer", "each"), norm == "all"
    leaf = torch.empty((num_heads, dim) if norm == "each" else dim, dtype=dtype)
    bias = leaf if layer else None
    head_norm = HeadNorm(layer, 1e-6, 0, leaf, leaf, bias, bias, layer, whole)
    table = torch.empty(5, 1, dim if rotary is None else rotary, dtype=dtype)
    steps = HeadSteps(
        head_norm if norm else None,
        clip,
        Rotation(table, table, style),
        torch.empty(5, 1, 1, dtype=dtype) if factors else None,
    )
    parts = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    rope_store_kv_triton(*parts, pages, pages, torch.zeros(5, dtype=torch.int64), steps)


def latents(
    num_heads: int, style: str = "interleaved", cache: torch.dtype | None = None, rank: int = 512
) -> None:
    """One step of latent attention: a latent and 64 rotated numbers a token."""
    q = torch.empty(5, num_heads, 192, dtype=BF16)[..., 128:]
    queries = torch.empty(5, num_heads, rank + 64, dtype=BF16)
    kv, weight = torch.empty(5, rank + 64, dtype=BF16), torch.empty(rank, dtype=BF16)
    pages = torch.empty(4, 16, 1, rank + 64, dtype=cache or BF16)
    table = torch.empty(5, 1, 64, dtype=BF16)
    about = (LatentNorm(False, 1e-6, 0, weight), Rotation(table, table, style))
    latent_store_kv_triton(q, queries, kv, pages, torch.zeros(5).long(), *about)


def embed(width: int, dtype: torch.dtype, factor: float) -> None:
    """Some tokens of a vocabulary."""
    embedding_triton.embed_triton(torch.zeros(5).long(), torch.empty(9, width, dtype=dtype), factor)


def sample(dtype: torch.dtype, vocab_size: int = 151_936) -> None:
    """Rows of a vocabulary, each with settings of its own."""
    rows = torch.empty(3)
    settings = RowSettings(rows, rows, rows, rows)
    sample_by_number(torch.empty(3, vocab_size, dtype=dtype), *settings, rows)


CASES: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "RMSNorm, 1024, bf16": partial(norm, 1024, BF16),
        "RMSNorm, 4096, bf16": partial(norm, 4096, BF16),
        "RMSNorm, 4096, fp16": partial(norm, 4096, FP16),
        "RMSNorm with offset, 3840, bf16": partial(norm, 3840, BF16, offset=1),
        "RMSNorm, 576, fp32": partial(norm, 576, FP32),
        "RMSNorm, 128, bf16": partial(norm, 128, BF16),
        "RMSNorm, 16384, bf16": partial(norm, 16384, BF16),
        "LayerNorm, 12288, bf16": partial(norm, 12288, BF16, layer=True),
        "LayerNorm with offset, 18432, bf16": partial(norm, 18432, BF16, layer=True, offset=1),
        "RMSNorm, no residual, 4096, bf16": partial(norm, 4096, BF16, residual=False),
        "LayerNorm, no residual, 12288, bf16": partial(
            norm, 12288, BF16, layer=True, residual=False
        ),
        "heads 16/8 of 128, QK-norm, bf16": partial(heads, 16, 8, 128, BF16, norm="rms"),
        "heads 32/8 of 128, bf16": partial(heads, 32, 8, 128, BF16),
        "heads 32/8 of 128, fp16": partial(heads, 32, 8, 128, FP16),
        "heads 8/4 of 256, QK-norm, bf16": partial(heads, 8, 4, 256, BF16, norm="rms"),
        "heads 9/3 of 64, fp32": partial(heads, 9, 3, 64, FP32),
        "heads 32/32 of 80, partial, QK-norm": partial(
            heads, 32, 32, 80, BF16, rotary=20, norm="each"
        ),
        "heads 71/1 of 64, clipped": partial(heads, 71, 1, 64, BF16, clip=8.0),
        "heads 40/8 of 128, pairs, scaled": partial(
            heads, 40, 8, 128, BF16, style="interleaved", factors=True
        ),
        "heads 16/16 of 128, LayerNorm after": partial(heads, 16, 16, 128, BF16, norm="layer"),
        "heads 16/8 of 128, QK-norm, fp8 cache": partial(
            heads, 16, 8, 128, BF16, norm="rms", cache=torch.float8_e4m3fn
        ),
        "heads 40/8 of 128, pairs, fp8 cache": partial(
            heads, 40, 8, 128, FP16, style="interleaved", cache=torch.float8_e4m3fn
        ),
        "heads 32/32 of 128, one QK-norm": partial(heads, 32, 32, 128, BF16, norm="all"),
        "heads 40/8 of 128, one QK-norm, pairs": partial(
            heads, 40, 8, 128, BF16, norm="all", style="interleaved"
        ),
        "latents of 512 + 64, 128 heads": partial(latents, 128),
        "latents of 512 + 64, 16 heads, halves": partial(latents, 16, "half"),
        "latents of 512 + 64, 128 heads, fp8 cache": partial(
            latents, 128, cache=torch.float8_e4m3fn
        ),
        "embedding, 4096, bf16": partial(embed, 4096, BF16, 1.0),
        "embedding, 2304, scaled, bf16": partial(embed, 2304, BF16, 48.0),
        "sampling, fp32": partial(sample, FP32),
        "sampling, bf16": partial(sample, BF16),
        "sampling of 262,144 tokens, bf16": partial(sample, BF16, 262_144),
        "gate clamped, fp16": partial(gate, "quick_gelu", FP16, 2880, limit=7.0, up_offset=1.0),
        "gate silu, fp32": partial(gate, "silu", FP32, 1536),
        **{
            f"gate {name}, bf16": partial(gate, name, BF16)
            for name in sorted({*KNOWN_ACTIVATIONS.values()} & {*KNOWN_ACTIVATIONS})
        },
        "gate gelu_tanh, bf16": partial(gate, "gelu_pytorch_tanh", BF16),
    }
)
"""What is called, by what a report calls it."""
