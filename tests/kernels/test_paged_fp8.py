"""8-bit keys and values: stored as torch rounds them, attended to as what they stand for."""

from __future__ import annotations

import pytest
import torch
from naive_attention import head_options, make_step

from assembler.kernels import paged_attention_triton as triton_attention
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dispatch import attention_backend
from assembler.kernels.fp8 import E4M3
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_tiling import Heads, choose_tiling
from assembler.kernels.store_kv_torch import quantise

SCALES = {"k_scale": 0.02, "v_scale": 0.5}


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    return attention_backend(request.param, "cpu")


def in_8_bits(step, k_scale, v_scale):
    """The step with its caches quantised, and what they then stand for as keys and values."""
    step.k_cache = quantise(step.k_cache, k_scale)
    latent = step.v_cache is None
    if not latent:
        step.v_cache = quantise(step.v_cache, v_scale)
    widths = [values.shape[-1] for values in step.values]
    step.keys = [quantise(keys, k_scale).float() * k_scale for keys in step.keys]
    step.values = [
        step.keys[s][..., :width] if latent else quantise(step.values[s], v_scale).float() * v_scale
        for s, width in enumerate(widths)
    ]
    return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("query_lens", "contexts"), [([1, 1], [4, 70]), ([5, 1, 17], [30, 8, 17])])
def test_scales_are_what_1_stands_for(backend, dtype, query_lens, contexts):
    step = in_8_bits(make_step(query_lens, contexts, dtype=dtype, page_size=16), **SCALES)
    options = head_options(4, "sinks", **SCALES)
    got = backend.attend(step.q, step.k_cache, step.v_cache, step.batch, options)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(got.double(), step.expected(options), atol=tolerance, rtol=tolerance)


def test_latent(backend):
    about = {"heads": 6, "kv_heads": 1, "head_dim": 40, "head_dim_v": 32, "latent": True}
    scales = {"k_scale": 0.25, "v_scale": 0.25}
    step = in_8_bits(make_step([1, 3], [20, 9], **about), **scales)
    options = AttentionOptions(scale=0.3, value_dim=32, **scales)
    got = backend.attend(step.q, step.k_cache, None, step.batch, options)
    torch.testing.assert_close(got.double(), step.expected(options), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("query_lens", [[1], [2]])
def test_latent_heads_that_share_a_group_in_parts(query_lens):
    """Many heads of a latent in 8 bits take fewer rows than in 16, which registers hold."""
    about = {"heads": 64, "kv_heads": 1, "head_dim": 288, "head_dim_v": 272, "latent": True}
    scales = {"k_scale": 0.25, "v_scale": 0.25}
    step = in_8_bits(make_step(query_lens, [20], dtype=torch.bfloat16, **about), **scales)
    heads = Heads(64, 288, 272, latent=True, cache_itemsize=1)
    assert choose_tiling(heads, GPUS["sm_90"], query_lens == [1]).tiles.HEADS == 32
    options = AttentionOptions(scale=0.06, value_dim=272, **scales)
    got = triton_attention.paged_attention_triton(
        step.q, step.k_cache, None, step.batch, options, gpu=GPUS["sm_90"]
    )
    torch.testing.assert_close(got.double(), step.expected(options), atol=2e-2, rtol=2e-2)


def test_the_hardware_and_the_bits_give_the_same():
    """Devices that convert e4m3 take it as it is; for the others the kernel takes it apart."""
    step = in_8_bits(make_step([1, 6], [33, 12], dtype=torch.float16, page_size=16), **SCALES)
    options = AttentionOptions(scale=0.3, **SCALES)
    got = [
        triton_attention.paged_attention_triton(
            step.q, step.k_cache, step.v_cache, step.batch, options, gpu=GPUS[architecture]
        )
        for architecture in ("sm_89", "sm_86")
    ]
    torch.testing.assert_close(*got, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.07])
def test_storing_rounds_to_nearest_and_cuts_off(backend, dtype, scale):
    random = torch.Generator().manual_seed(0)
    k, v = (torch.randn(3, 2, 40, generator=random).mul(100).to(dtype) for _ in range(2))
    k[0, 0, 0], v[1, 1, 1] = 1e6, -1e6
    k_cache, v_cache = (torch.zeros(2, 4, 2, 40).to(E4M3) for _ in range(2))
    backend.store_kv(k, v, k_cache, v_cache, torch.tensor([6, -1, 3]), scale, scale / 2)
    k_got, v_got = (cache.float().view(8, 2, 40) for cache in (k_cache, v_cache))
    assert torch.equal(k_got[[6, 3]], quantise(k[[0, 2]], scale).float())
    assert torch.equal(v_got[[6, 3]], quantise(v[[0, 2]], scale / 2).float())
    assert k_got[6, 0, 0] == 448
    assert not k_got[[0, 1, 2, 4, 5, 7]].any() and not v_got[[0, 1, 2, 4, 5, 7]].any()
