"""QK-norm, clipping, RoPE and the store of keys and values in one pass: as torch step by step."""

from __future__ import annotations

import pytest
import torch

from assembler.kernels.head_steps import HeadNorm, HeadSteps, Rotation, rope_store_kv_torch
from assembler.kernels.rope_kv_triton import rope_store_kv_triton

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")
TOLERANCE = {torch.float32: 3e-6, torch.float16: 6e-3, torch.bfloat16: 5e-2}
SLOTS = (7, -1, 19)  # of 5 pages of 4


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_steps(
    tokens: int,
    heads: tuple[int, int],
    dim: int,
    *,
    norm: str = "",
    after: bool = False,
    offset: int = 0,
    style: str = "half",
    rotary: int = 0,
    clip: float | None = None,
    factors: bool = False,
) -> HeadSteps:
    """Steps of random float64 numbers.

    `norm` is "", "rms", "layer", "bare", "each", or "all" or "all layer" over all heads as one.
    """
    whole = norm.startswith("all")
    shapes = [(n * dim,) if whole else (n, dim) if norm == "each" else (dim,) for n in heads]
    leaves = [randn(*shape, seed=2 + n) for n, shape in enumerate(shapes * 2)]
    with_bias = norm in ("layer", "each", "all layer")
    head_norm = HeadNorm(
        with_bias,
        2e-3,
        offset,
        *(leaves[:2] if norm != "bare" else (None, None)),
        *(leaves[2:] if with_bias else (None, None)),
        after_rope=after,
        all_heads=whole,
    )
    angles = randn(tokens, 1, rotary, seed=7)
    return HeadSteps(
        head_norm if norm else None,
        clip,
        Rotation(1.3 * angles.cos(), 1.3 * angles.sin(), style) if rotary else None,
        1 + 0.1 * randn(tokens, 1, 1, seed=8) if factors else None,
    )


def in_dtype(steps: HeadSteps, dtype: torch.dtype) -> HeadSteps:
    """The same steps with all numbers rounded to `dtype`."""

    def cast(value):
        if isinstance(value, torch.Tensor):
            return value.to(dtype)
        if isinstance(value, HeadNorm | Rotation):
            return type(value)(*(cast(field) for field in vars(value).values()))
        return value

    return HeadSteps(*(cast(field) for field in vars(steps).values()))


def run(way, qkv, heads: tuple[int, int], steps: HeadSteps, slots, *scales, cache=None) -> list:
    """Queries and both caches, after the step; unused slots are NaN."""
    num_q, num_kv = heads
    parts = qkv.split((num_q, num_kv, num_kv), dim=1)
    shape = (5, 4, num_kv, qkv.shape[2])
    caches = [torch.full(shape, torch.nan).to(cache or qkv.dtype) for _ in range(2)]
    slots = torch.tensor(slots, dtype=torch.int64)
    return [way(*parts, *caches, slots, steps, *scales), *caches]


def compare(heads, dim, dtype, slots=SLOTS, **about) -> None:
    exact_steps = make_steps(len(slots), heads, dim, **about)
    steps = in_dtype(exact_steps, dtype)
    qkv = randn(len(slots), heads[0] + 2 * heads[1], dim, seed=1, dtype=dtype)
    got = run(rope_store_kv_triton, qkv, heads, steps, slots)
    plain = run(rope_store_kv_torch, qkv, heads, steps, slots)
    exact = run(rope_store_kv_torch, qkv.double(), heads, in_dtype(steps, torch.float64), slots)
    tolerance = TOLERANCE[dtype]
    for ours, torchs, wide in zip(got, plain, exact, strict=True):
        assert ours.dtype == dtype and ours.shape == torchs.shape
        if dtype != torch.float32:  # a norm's sum in another order turns a rounding here and there
            assert ((ours != torchs) & ~torchs.isnan()).sum() <= 0.01 * ours.numel()
        close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
        torch.testing.assert_close(ours, torchs, **close)
        torch.testing.assert_close(ours.double(), wide, **close)


NORMS = [
    {},
    {"norm": "rms"},
    {"norm": "rms", "offset": 1},
    {"norm": "bare"},
    {"norm": "layer"},
    {"norm": "layer", "offset": 1},
    {"norm": "each"},
    {"norm": "all"},
    {"norm": "all", "offset": 1},
    {"norm": "all layer"},
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: "-".join(map(str, norm.values())))
def test_every_norm_on_either_side_of_the_rotation(norm, after, dtype):
    compare((4, 2), 16, dtype, rotary=16, after=after, **norm)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("style", ["half", "half_reversed", "interleaved"])
@pytest.mark.parametrize(("dim", "rotary"), [(24, 24), (24, 8), (40, 10), (64, 2), (16, 0)])
def test_every_style_whole_and_partial(style, dim, rotary, dtype):
    compare((3, 1), dim, dtype, rotary=rotary, style=style, norm="rms")


@pytest.mark.parametrize("heads", [(1, 1), (5, 5), (6, 2), (17, 1), (12, 4)], ids=str)
@pytest.mark.parametrize("dim", [8, 80, 256])
def test_heads_of_any_number_and_width(heads, dim):
    compare(heads, dim, torch.float32, rotary=dim, norm="each")
    compare(heads, dim, torch.bfloat16, rotary=dim // 2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norm", ["", "rms"])
def test_clipped_and_scaled_queries(norm, dtype):
    compare((4, 2), 16, dtype, rotary=16, clip=0.7, factors=True, norm=norm)
    compare((4, 2), 16, dtype, clip=0.7, after=True, norm=norm)


@pytest.mark.parametrize("norm", ["all", "all layer"])
@pytest.mark.parametrize("heads", [(1, 1), (5, 5), (6, 2), (12, 3)], ids=str)
def test_one_norm_over_heads_of_any_number(heads, norm):
    compare(heads, 24, torch.float32, norm=norm, rotary=8, style="interleaved")
    compare(heads, 8, torch.bfloat16, norm=norm, rotary=8, after=True)


CACHE_OF_8_BITS = {"cache": torch.float8_e4m3fn}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("norm", ["", "rms", "all"])
def test_a_cache_of_8_bits_holds_keys_and_values_divided_by_their_scales(norm, style, dtype):
    heads, scales = (4, 2), (0.002, 0.3)
    about = {"norm": norm, "rotary": 8, "style": style, "clip": 30.0}
    steps = in_dtype(make_steps(len(SLOTS), heads, 16, **about), dtype)
    qkv = 20 * randn(len(SLOTS), 8, 16, seed=1, dtype=dtype)
    got = run(rope_store_kv_triton, qkv, heads, steps, SLOTS, *scales, **CACHE_OF_8_BITS)
    torchs = run(rope_store_kv_torch, qkv, heads, steps, SLOTS, *scales, **CACHE_OF_8_BITS)
    wide, exact = qkv.double(), in_dtype(steps, torch.float64)
    exact = run(rope_store_kv_torch, wide, heads, exact, SLOTS)
    full = run(rope_store_kv_triton, qkv, heads, steps, SLOTS)
    assert torch.equal(got[0], full[0])  # queries are not quantised
    for ours, plain, numbers, scale in zip(got[1:], torchs[1:], exact[1:], scales, strict=True):
        codes, others = ours.view(torch.uint8), plain.view(torch.uint8)
        assert (codes != others).sum() <= 0.01 * codes.numel() and ours.dtype == torch.float8_e4m3fn
        # Half a step of e4m3: 1/16 of the number, 2**-10 among the smallest; cut at 448.
        within = (numbers / scale).clamp(-448, 448)
        tolerance = {"rtol": 1 / 16 + TOLERANCE[dtype], "atol": 2**-10 + TOLERANCE[dtype] / scale}
        torch.testing.assert_close(ours.double(), within, equal_nan=True, **tolerance)
    assert (got[1].float().nan_to_num().abs() == 448).any()  # 1 / 0.002 does not fit


@pytest.mark.parametrize("slots", [(), (3,), (-1, -1), tuple(range(20))], ids=str)
def test_tokens_of_any_number_stored_or_not(slots):
    compare((4, 2), 16, torch.float32, slots=slots, rotary=16, norm="rms")


def test_separate_queries_keys_and_values():
    """Not only the slices of one projection, as after a norm over all heads."""
    steps = in_dtype(make_steps(len(SLOTS), (4, 2), 16, rotary=16), torch.float32)
    qkv = randn(len(SLOTS), 8, 16, seed=1, dtype=torch.float32)
    parts = [part.clone() for part in qkv.split((4, 2, 2), dim=1)]
    caches = [torch.zeros(5, 4, 2, 16) for _ in range(2)]
    got = rope_store_kv_triton(*parts, *caches, torch.tensor(SLOTS), steps)
    assert torch.equal(got, run(rope_store_kv_triton, qkv, (4, 2), steps, SLOTS)[0])


def test_the_operation_is_what_torch_expects_of_it():
    steps = in_dtype(make_steps(2, (2, 1), 8, rotary=8, norm="rms"), torch.float32)
    qkv = randn(2, 4, 8, seed=1, dtype=torch.float32)
    q, k, v = (part.clone() for part in qkv.split((2, 1, 1), dim=1))
    caches = [torch.zeros(1, 4, 1, 8) for _ in range(2)]
    norm, turn = steps.norm, steps.rotation
    torch.library.opcheck(
        torch.ops.assembler.rope_store_kv.default,
        (
            *(q, k, v, *caches, torch.tensor([2, -1])),
            *(turn.cos, turn.sin, False, "before", False, norm.eps, 0),
            *(norm.q_weight, norm.k_weight, None, None, None, None),
            *(False, 1.0, 1.0),
        ),
    )
