"""The latent's norm, the rotations and the store of latent attention in one pass: as in torch."""

from __future__ import annotations

import pytest
import torch

from assembler.kernels.head_steps import Rotation
from assembler.kernels.latent_kv import LatentNorm, latent_store_kv_torch
from assembler.kernels.latent_kv_triton import latent_store_kv_triton

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")
TOLERANCE = {torch.float32: 3e-6, torch.float16: 6e-3, torch.bfloat16: 5e-2}
SLOTS = (7, -1, 19)  # of 5 pages of 4
E4M3 = torch.float8_e4m3fn


def randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(heads, rank, rope, dtype, *, style="half", norm="rms", offset=0, tokens=3):
    """(q_rope, kv, norm, rotation): slices of wider rows, as the projections leave them."""
    q = randn(tokens, heads, 5 + rope, seed=1, dtype=dtype)[..., 5:]
    kv = 3 * randn(tokens, rank + rope + 2, seed=2, dtype=dtype)[..., : rank + rope]
    weight, bias = (randn(rank, seed=n, dtype=dtype) for n in (3, 4))
    leaves = {"rms": (weight, None), "layer": (weight, bias), "bare": (None, None)}[norm]
    angles = randn(tokens, 1, rope, seed=7, dtype=torch.float64)
    tables = ((1.3 * angles.cos()).to(dtype), (1.3 * angles.sin()).to(dtype))
    rotation = Rotation(*tables, style) if style else None
    return q, kv, LatentNorm(norm == "layer", 2e-3, offset, *leaves), rotation


def wide(values):
    """The same numbers in float64."""
    q, kv, norm, rotation = values
    leaves = (None if leaf is None else leaf.double() for leaf in (norm.weight, norm.bias))
    if rotation is not None:
        rotation = Rotation(rotation.cos.double(), rotation.sin.double(), rotation.style)
    norm = LatentNorm(norm.layer_norm, norm.eps, norm.offset, *leaves)
    return q.double(), kv.double(), norm, rotation


def run(way, values, *scale, cache=None, slots=SLOTS):
    """Queries and the cache after the step; what nobody writes is NaN in both."""
    q, kv, norm, rotation = values
    queries = torch.full((*q.shape[:2], kv.shape[1]), torch.nan, dtype=kv.dtype)
    pages = torch.full((5, 4, 1, kv.shape[1]), torch.nan).to(cache or kv.dtype)
    way(q, queries, kv, pages, torch.tensor(slots, dtype=torch.int64), norm, rotation, *scale)
    return queries, pages


def compare(heads, rank, rope, dtype, **about):
    values = inputs(heads, rank, rope, dtype, **about)
    exact = run(latent_store_kv_torch, wide(values))
    plain = run(latent_store_kv_torch, values)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype], "equal_nan": True}
    for ours, torchs, number in zip(run(latent_store_kv_triton, values), plain, exact, strict=True):
        if dtype != torch.float32:  # a sum in another order turns a rounding here and there
            assert ((ours != torchs) & ~torchs.isnan()).sum() <= 0.01 * ours.numel()
        torch.testing.assert_close(ours, torchs, **close)
        torch.testing.assert_close(ours.double(), number, **close)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("style", ["half", "half_reversed", "interleaved", ""])
def test_every_rotation(style, dtype):
    compare(3, 18, 6, dtype, style=style)
    compare(17, 64, 16, dtype, style=style)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("norm", "offset"), [("rms", 1), ("layer", 0), ("bare", 0)])
def test_every_norm(norm, offset, dtype):
    compare(4, 20, 8, dtype, norm=norm, offset=offset)


def test_published_widths():
    compare(16, 512, 64, torch.bfloat16, style="interleaved")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_a_cache_of_8_bits_holds_rows_divided_by_their_scale(style, dtype):
    values, scale = inputs(4, 18, 6, dtype, style=style), 0.004
    queries, pages = run(latent_store_kv_triton, values, scale, cache=E4M3)
    others, theirs = run(latent_store_kv_torch, values, scale, cache=E4M3)
    torch.testing.assert_close(queries, others, equal_nan=True, rtol=1e-6, atol=1e-6)
    codes, expected = pages.view(torch.uint8), theirs.view(torch.uint8)
    assert (codes != expected).sum() <= 0.01 * codes.numel()
    numbers = run(latent_store_kv_torch, wide(values))[1] / scale
    tolerance = {"rtol": 1 / 16 + TOLERANCE[dtype], "atol": 2**-10 + TOLERANCE[dtype] / scale}
    cut = numbers.clamp(-448, 448)
    torch.testing.assert_close(pages.double(), cut, equal_nan=True, **tolerance)
    assert (cut.nan_to_num().abs() == 448).any()  # 2 / 0.004 does not fit


@pytest.mark.parametrize("slots", [(), (3,), (-1, -1), tuple(range(20))], ids=str)
def test_tokens_of_any_number_stored_or_not(slots):
    values = inputs(2, 8, 4, torch.float32, tokens=len(slots))
    ours = run(latent_store_kv_triton, values, slots=slots)
    theirs = run(latent_store_kv_torch, values, slots=slots)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=3e-6, atol=3e-6)


def test_the_operation_is_what_torch_expects_of_it():
    q, kv, norm, turn = inputs(2, 8, 4, torch.float32, tokens=2)
    queries, cache = torch.zeros(2, 2, 12), torch.zeros(1, 4, 1, 12)
    torch.library.opcheck(
        torch.ops.assembler.latent_store_kv.default,
        (
            *(q.clone(), queries, kv.clone(), cache, torch.tensor([2, -1])),
            *(turn.cos, turn.sin, False, False, norm.eps, 0, norm.weight, None, 1.0),
        ),
    )
