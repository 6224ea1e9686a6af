"""What attention does besides widths, crossed with how each kind of GPU cuts it, in 16 bits.

All options at once, latent caches of the real width and caches of 8 bits, each as a step of decodes
and a chunk of a prompt. Unused memory is NaN, and so is the output before it is written.
"""

from __future__ import annotations

import pytest
import torch
from naive_attention import PagedStep, head_options, make_step

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_triton import paged_attention_triton
from assembler.kernels.store_kv_torch import quantise

pytestmark = pytest.mark.usefixtures("poisoned_memory", "device_rounding")
architectures = pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942"])
dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
LATENT = {"kv_heads": 1, "head_dim": 576, "head_dim_v": 512, "latent": True}


def check(step: PagedStep, options: AttentionOptions, architecture: str, splits: int = 1) -> None:
    got = paged_attention_triton(
        step.q, step.k_cache, step.v_cache, step.batch, options, splits=splits,
        gpu=GPUS[architecture],
    )  # fmt: skip
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 2e-2}[step.q.dtype]
    torch.testing.assert_close(got.double(), step.expected(options), atol=tolerance, rtol=tolerance)


def in_8_bits(step: PagedStep, k_scale: float, v_scale: float) -> PagedStep:
    """The step with its caches quantised, and what they then stand for as keys and values."""

    def stands_for(numbers: torch.Tensor, scale: float) -> torch.Tensor:
        return quantise(numbers, scale).float() * scale

    latent = step.v_cache is None
    keys = [stands_for(k, k_scale) for k in step.keys]
    values = (
        [k[..., : v.shape[-1]] for k, v in zip(keys, step.values, strict=True)]
        if latent
        else [stands_for(v, v_scale) for v in step.values]
    )
    v_cache = None if latent else quantise(step.v_cache, v_scale)
    return PagedStep(step.q, quantise(step.k_cache, k_scale), v_cache, step.batch, keys, values)


@architectures
@dtypes
@pytest.mark.parametrize("rounded", [False, True])
def test_all_options_at_once(architecture, dtype, rounded):
    """Windows end within tiles, chunks of positions too; the decodes are split."""
    sight = {"window": 70, "chunk": 96}
    step = make_step(
        [1, 40, 1], [290, 150, 70], heads=6, head_dim=64, page_size=16, dtype=dtype, **sight
    )
    options = head_options(
        6, "sinks", "alibi_slopes", softcap=3.0, alibi_rounded=rounded, **sight
    )  # fmt: skip
    check(step, options, architecture, splits=2)


@architectures
@dtypes
@pytest.mark.parametrize("heads", [16, 128])
def test_latent_caches_of_the_real_width(architecture, dtype, heads):
    """DeepSeek-V2's and V3's: a group is cut where a program cannot hold its rows."""
    step = make_step([1, 3], [70, 40], heads=heads, page_size=16, dtype=dtype, **LATENT)
    check(step, AttentionOptions(scale=576**-0.5, value_dim=512), architecture)


@architectures
def test_latent_decodes_in_splits(architecture):
    """With sinks, which the first split counts alone."""
    step = make_step([1], [300], heads=16, page_size=64, dtype=torch.bfloat16, **LATENT)
    options = head_options(16, "sinks", scale=576**-0.5, value_dim=512)
    check(step, options, architecture, splits=2)


@architectures
@dtypes
@pytest.mark.parametrize("head_dim", [80, 128])
def test_caches_of_8_bits(architecture, dtype, head_dim):
    """Taken as they are where the hardware converts e4m3 and taken apart elsewhere; any tile."""
    scales = {"k_scale": 0.02, "v_scale": 0.5}
    step = make_step([1, 40], [140, 110], heads=6, head_dim=head_dim, page_size=16, dtype=dtype)
    options = AttentionOptions(scale=head_dim**-0.5, **scales)
    check(in_8_bits(step, **scales), options, architecture)


@architectures
def test_latent_caches_of_8_bits(architecture):
    scales = {"k_scale": 0.25, "v_scale": 0.25}
    step = make_step([1, 3], [70, 20], heads=16, page_size=16, dtype=torch.bfloat16, **LATENT)
    options = AttentionOptions(scale=576**-0.5, value_dim=512, **scales)
    check(in_8_bits(step, **scales), options, architecture)
