"""The fused norms: Triton's kernel gives what plain torch gives, and what float64 says."""

from __future__ import annotations

import pytest
import torch

from assembler.kernels import norms_triton
from assembler.kernels.norms_torch import layer_norm_torch, rms_norm_torch

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
EPS = 2e-3


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random numbers, at a stride, in memory that is NaN around them."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    around = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=dtype)
    around[..., :-3] = torch.randn(shape, generator=generator).to(dtype)
    return around[..., :-3]


def leaves(layer: bool, weight, bias) -> tuple:
    return (weight, bias) if layer else (weight,)


def check(got: torch.Tensor, like: torch.Tensor, exact: torch.Tensor) -> None:
    """`got` is `like` but for the order of a sum, and near `exact` (float64)."""
    assert got.dtype == like.dtype and got.shape == like.shape and got.is_contiguous()
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, like, rtol=2e-6, atol=2e-6)
    else:  # a sum in another order may turn a rounding here and there
        assert (got != like).sum() <= 0.01 * got.numel()
    tolerance = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[got.dtype]
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize(
    "shape", [(5, 40), (1, 1), (2, 3, 129), (3, 2048), (37, 24), (0, 16), (2, 0, 8)], ids=str
)
def test_a_sum_and_its_norm(shape, layer, offset, dtype):
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    weight, bias = random(shape[-1], dtype=dtype, seed=2), random(shape[-1], dtype=dtype, seed=3)
    plain = layer_norm_torch if layer else rms_norm_torch
    fused = norms_triton.layer_norm if layer else norms_triton.rms_norm
    fused_add = norms_triton.add_layer_norm if layer else norms_triton.add_rms_norm
    values = leaves(layer, weight, bias)
    wide = [leaf.double() for leaf in values]
    check(
        fused(x, *values, EPS, offset),
        plain(x, *values, EPS, offset),
        plain(x.double(), *wide, EPS, offset),
    )
    normed, total = fused_add(x, residual, *values, EPS, offset)
    assert torch.equal(total, residual + x)
    exact = plain(total.double(), *wide, EPS, offset)
    check(normed, plain(total, *values, EPS, offset), exact)


@DTYPES
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
def test_norms_without_weights(layer, dtype):
    x = random(4, 72, dtype=dtype)
    got = norms_triton.layer_norm(x, None, None, EPS, 0)
    plain = layer_norm_torch(x, None, None, EPS, 0)
    exact = layer_norm_torch(x.double(), None, None, EPS, 0)
    if not layer:
        got, plain = norms_triton.rms_norm(x, None, EPS, 0), rms_norm_torch(x, None, EPS, 0)
        exact = rms_norm_torch(x.double(), None, EPS, 0)
    check(got, plain, exact)


@DTYPES
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
def test_each_head_has_a_weight_of_its_own(layer, offset, dtype):
    x = random(7, 3, 24, dtype=dtype)
    weight, bias = random(3, 24, dtype=dtype, seed=1), random(3, 24, dtype=dtype, seed=2)
    values = leaves(layer, weight, bias)
    plain = layer_norm_torch if layer else rms_norm_torch
    fused = norms_triton.layer_norm if layer else norms_triton.rms_norm
    exact = plain(x.double(), *(leaf.double() for leaf in values), EPS, offset)
    check(fused(x, *values, EPS, offset), plain(x, *values, EPS, offset), exact)


def test_large_numbers_do_not_cancel():
    """A variance of differences, not a difference of squares."""
    x = 1e4 + random(3, 300, dtype=torch.float32)
    exact = layer_norm_torch(x.double(), None, None, EPS, 0)
    got = norms_triton.layer_norm(x, None, None, EPS, 0)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=2e-3)


def test_rows_of_nan_stay_to_themselves():
    x = random(6, 40, dtype=torch.float32).contiguous()
    want = norms_triton.rms_norm(x, None, EPS, 0)
    x[2] = torch.nan
    got = norms_triton.rms_norm(x, None, EPS, 0)
    rest = torch.arange(6) != 2
    assert got[2].isnan().all() and torch.equal(got[rest], want[rest])


@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"])
def test_the_operations_are_what_torch_expects_of_them(name):
    weight = torch.ones(24)
    inputs = [torch.randn(3, 24)] * (2 if name.startswith("add") else 1)
    values = (weight, torch.zeros(24)) if "layer" in name else (weight,)
    operation = getattr(torch.ops.assembler, name).default
    torch.library.opcheck(operation, (*inputs, *values, EPS, 0))
