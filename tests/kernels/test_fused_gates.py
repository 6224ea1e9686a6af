"""The fused gate: every activation, clamped and shifted forms, and halves of one projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from assembler.blocks.activations import ACTIVATIONS
from assembler.kernels.activation_triton import KNOWN_ACTIVATIONS
from assembler.kernels.gated_triton import gated_triton
from assembler.kernels.gating import gated_torch

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")
FUNCTIONS = {**ACTIVATIONS, "softplus": F.softplus}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def halves(*shape: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up [*shape] as a projection writes them, with NaN on either side."""
    generator = torch.Generator().manual_seed(sum(shape))
    *rows, width = shape
    both = torch.full((*rows, 2 * width + 5), torch.nan, dtype=dtype)
    both[..., 2:-3] = (3 * torch.randn(*rows, 2 * width, generator=generator)).to(dtype)
    return both[..., 2:-3].chunk(2, dim=-1)


def check(got: torch.Tensor, like: torch.Tensor, exact: torch.Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    assert got.dtype == like.dtype and got.shape == like.shape
    torch.testing.assert_close(got, like, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)


def test_every_activation_of_configs_is_known():
    assert {*ACTIVATIONS} == {*KNOWN_ACTIVATIONS} - {"softplus"}


@DTYPES
@pytest.mark.parametrize("name", KNOWN_ACTIVATIONS)
def test_every_activation(name, dtype):
    act = FUNCTIONS[name]
    gate, up = halves(3, 40, dtype=dtype)
    exact = gated_torch(gate.double(), up.double(), act)
    check(gated_triton(gate, up, name), gated_torch(gate, up, act), exact)


@pytest.mark.parametrize("name", KNOWN_ACTIVATIONS)
def test_far_out_and_near_zero_activations_keep_their_digits(name):
    powers = torch.logspace(-12, 3, 46)
    x = torch.cat((-powers, torch.zeros(1), powers))
    with np.errstate(over="ignore"):  # e^x may be infinite inside a sigmoid
        got = gated_triton(x, torch.ones_like(x), name)
    exact = FUNCTIONS[name](x.double())
    # GELUs of large negative numbers are differences of numbers near 1, also in torch.
    absolute = 1e-6 if "gelu" in name or name == "laplace" else 1e-30
    if name == "sqrtsoftplus":
        absolute = 1e-18
    torch.testing.assert_close(got.double(), exact, rtol=3e-6, atol=absolute)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 129), (4, 2500), (0, 8), (2, 0, 8)], ids=str)
def test_clamped_and_shifted(shape, dtype):
    gate, up = halves(*shape, dtype=dtype)
    form = {"limit": 1.7, "up_offset": 0.3}
    got = gated_triton(gate, up, "quick_gelu", **form)
    plain = gated_torch(gate, up, ACTIVATIONS["quick_gelu"], **form)
    check(got, plain, gated_torch(gate.double(), up.double(), ACTIVATIONS["quick_gelu"], **form))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_where_torch_rounds(dtype):
    gate, up = halves(50, 64, dtype=dtype)
    got = gated_triton(gate, up, "silu", limit=2.0, up_offset=1.0)
    plain = gated_torch(gate, up, F.silu, 2.0, 1.0)
    assert (got != plain).float().mean() < 0.005  # where torch's e^x has another last bit


@pytest.mark.parametrize("name", KNOWN_ACTIVATIONS)
def test_nan_stays_nan(name):
    nan = torch.full((4,), torch.nan)
    assert gated_triton(nan, torch.ones(4), name, limit=1.0).isnan().all()
    assert gated_triton(torch.ones(4), nan, name, limit=1.0).isnan().all()


def test_the_operation_is_what_torch_expects_of_it():
    gate, up = torch.randn(3, 16).chunk(2, dim=-1)
    torch.library.opcheck(torch.ops.assembler.gated.default, (gate, up, "silu", 7.0, 1.0))
