"""Norms against those of transformers and torch, to the bit where the arithmetic is the same."""

from __future__ import annotations

import pytest
import torch
from block_harness import build_context, fill, randn
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nanochat.modeling_nanochat import NanoChatRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from assembler.blocks.norms import LayerNorm, RMSNorm
from assembler.errors import SpecError

WIDTH = 48
DTYPES = [torch.float32, torch.bfloat16]
OURS = {
    "llama": (lambda ctx: RMSNorm(ctx, eps=2e-3), LlamaRMSNorm(WIDTH, eps=2e-3)),
    "gemma2": (lambda ctx: RMSNorm(ctx, eps=2e-3, offset=1), Gemma2RMSNorm(WIDTH, eps=2e-3)),
    "layer": (lambda ctx: LayerNorm(ctx, eps=2e-3), nn.LayerNorm(WIDTH, eps=2e-3)),
    "layer_no_bias": (
        lambda ctx: LayerNorm(ctx, eps=2e-3, bias=False),
        nn.LayerNorm(WIDTH, eps=2e-3, bias=False),
    ),
    "nemotron": (
        lambda ctx: LayerNorm(ctx, eps=2e-3, offset=1),
        NemotronLayerNorm1P(WIDTH, eps=2e-3),
    ),
    "nanochat": (lambda ctx: RMSNorm(ctx, eps=2e-3, weight=False), NanoChatRMSNorm(eps=2e-3)),
    "olmo": (lambda ctx: LayerNorm(ctx, weight=False, bias=False), OlmoLayerNorm(WIDTH)),
}


def pair(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Our norm and the reference with equal weights."""
    make, reference = OURS[name]
    ours = fill(make(build_context(WIDTH))).to(dtype)
    reference = reference.to(dtype)
    reference.load_state_dict(ours.state_dict())
    return ours, reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_equals_the_reference(name, dtype):
    ours, reference = pair(name, dtype)
    x = randn(2, 5, WIDTH, dtype=dtype) * 3
    got = ours(x)
    assert got.dtype == dtype
    if dtype is torch.bfloat16:
        assert torch.equal(got, reference(x))
    torch.testing.assert_close(got, reference(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_fused_form_is_bit_identical(name, dtype):
    ours, _ = pair(name, dtype)
    x, residual = randn(7, WIDTH, dtype=dtype), randn(7, WIDTH, seed=2, dtype=dtype)
    normed, total = ours(x, residual)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, ours(residual + x))


def test_heads_in_a_strided_view_are_normed_alone():
    norm = fill(RMSNorm(build_context(8), eps=1e-6))
    fused = randn(5, 6 * 8).view(5, 6, 8)
    heads = fused[:, 1:4]
    for head in range(3):
        torch.testing.assert_close(norm(heads)[:, head], norm(heads[:, head].contiguous()))


def test_a_bare_norm_has_no_parameters():
    norm = RMSNorm(build_context(WIDTH), eps=1e-6, weight=False)
    assert not norm.state_dict() and not norm.shard_dims()
    with pytest.raises(SpecError, match=r"layers\.0\.block: offset 1 is added to a weight"):
        RMSNorm(build_context(WIDTH), eps=1e-6, weight=False, offset=1)


def test_every_rank_holds_the_whole_norm():
    layouts = LayerNorm(build_context(WIDTH)).shard_dims()
    assert set(layouts) == {"weight", "bias"}
    assert all(dim.kind == "replicated" and dim.shape == (WIDTH,) for dim in layouts.values())
    assert set(LayerNorm(build_context(WIDTH), bias=False).shard_dims()) == {"weight"}
    assert set(RMSNorm(build_context(WIDTH), eps=1e-6).shard_dims()) == {"weight"}


def test_gradients_reach_the_weights():
    norm = fill(RMSNorm(build_context(WIDTH), eps=1e-6, offset=1))
    x = randn(3, WIDTH).requires_grad_()
    norm(x).square().sum().backward()
    assert norm.weight.grad.abs().min() > 0 and x.grad.isfinite().all()
