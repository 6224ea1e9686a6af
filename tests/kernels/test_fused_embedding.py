"""The fused embedding gives torch's bits: rows, factors, shares of a vocabulary."""

from __future__ import annotations

import pytest
import torch

from assembler.kernels.embedding import embed_torch
from assembler.kernels.embedding_triton import embed_triton

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 24.0, 0.3])
@pytest.mark.parametrize(("width", "shape"), [(1, (3,)), (40, (2, 5)), (1500, (4,)), (8, (0,))])
def test_rows_times_a_factor(width, shape, scale, dtype):
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(11, width, generator=generator).to(dtype)
    tokens = torch.randint(11, shape, generator=generator)
    rounded = torch.tensor(scale, dtype=dtype).item()
    got = embed_triton(tokens, weight, rounded)
    assert torch.equal(got, embed_torch(tokens, weight, scale)) and got.dtype == dtype
    exact = weight.double()[tokens] * rounded
    torch.testing.assert_close(got.double(), exact, rtol=1e-2, atol=0)
    assert torch.equal(embed_triton(tokens.int(), weight, rounded), got)


def test_the_shares_of_a_vocabulary_sum_to_the_whole():
    weight = torch.randn(11, 24, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(11).repeat(2)
    shares = [range(4), range(4, 8), range(8, 11)]
    parts = [embed_triton(tokens, weight[s.start : s.stop], 3.0, s.start) for s in shares]
    for part, share in zip(parts, shares, strict=True):
        assert torch.equal(
            part, embed_torch(tokens, weight[share.start : share.stop], 3.0, share=share)
        )
    assert torch.equal(sum(parts), embed_torch(tokens, weight, 3.0))


def test_rows_of_other_tokens_are_not_read():
    weight = torch.full((9, 16), torch.nan)
    weight[[2, 7]] = 1.5
    assert embed_triton(torch.tensor([7, 2, 2]), weight, 2.0).eq(3.0).all()


def test_the_operation_is_what_torch_expects_of_it():
    arguments = (torch.tensor([1, 0]), torch.randn(3, 8), 2.0, 0)
    torch.library.opcheck(torch.ops.assembler.embed.default, arguments)
