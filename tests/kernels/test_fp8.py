"""The bits of float8 e4m3 as the kernels take them apart and put them together: torch's, all."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from assembler.kernels.fp8 import E4M3, LARGEST, from_e4m3, to_e4m3
from assembler.kernels.store_kv_torch import quantise

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@triton.jit
def read_kernel(bits_ptr, out_ptr, COUNT: tl.constexpr):
    lanes = tl.arange(0, COUNT)
    tl.store(out_ptr + lanes, from_e4m3(tl.load(bits_ptr + lanes)))


@triton.jit
def write_kernel(numbers_ptr, out_ptr, COUNT: tl.constexpr):
    lanes = tl.arange(0, COUNT)
    tl.store(out_ptr + lanes, to_e4m3(tl.load(numbers_ptr + lanes)))


def test_every_code_is_read_exactly():
    codes = torch.arange(256).to(torch.uint8)
    got = torch.empty(256, dtype=torch.float16)
    read_kernel[(1,)](codes, got, 256)
    torch.testing.assert_close(got, codes.view(E4M3).half(), rtol=0, atol=0, equal_nan=True)


def test_every_bfloat16_and_every_tie_is_written_as_torch_does():
    every = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).float()
    codes = torch.arange(256).to(torch.uint8).view(E4M3).float()
    codes = codes[codes.isfinite()].sort().values
    ties = (
        codes[1:] + codes[:-1]
    ) / 2  # 253 of them; those next to a tie must not be taken for one
    near = torch.cat([ties, ties.nextafter(ties + 1), ties.nextafter(ties - 1)])
    numbers = torch.cat([every, near, torch.zeros((1 << 16) - len(near))])
    got = torch.empty(len(numbers), dtype=torch.uint8)
    write_kernel[(1,)](numbers, got, len(numbers))
    want = quantise(numbers, 1.0).view(torch.uint8)
    assert torch.equal(got, want)
    assert want.view(E4M3).float().nan_to_num().abs().max() == LARGEST
