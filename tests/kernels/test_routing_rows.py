"""Choices sorted by expert and cut into tiles, and rows summed by token."""

from __future__ import annotations

import pytest
import torch

from assembler.kernels import routing_rows_triton
from assembler.kernels.routing_rows import (
    Alignment,
    align_experts_torch,
    count_tiles,
    sum_experts_torch,
)
from assembler.kernels.routing_rows_triton import align_experts, sum_experts

pytestmark = pytest.mark.usefixtures("device_rounding", "poisoned_memory")
ALIGN = torch.ops.assembler.align_experts.default
SUM = torch.ops.assembler.sum_experts.default


def choices(tokens: int, top_k: int, experts: int) -> torch.Tensor:
    """[tokens, top_k], all different; the first and the last expert are never chosen."""
    generator = torch.Generator().manual_seed(tokens)
    among = torch.rand(tokens, max(experts - 2, top_k), generator=generator)
    return among.topk(top_k).indices + (experts - 2 >= top_k)


def one_by_one(chosen: torch.Tensor, experts: int, block_m: int) -> Alignment:
    """In plain Python."""
    order, tiles, ends = [], [], []
    slots = chosen.flatten().tolist()
    for expert in range(experts):
        mine = [slot for slot, choice in enumerate(slots) if choice == expert]
        tiles += [(expert, len(order) + first) for first in range(0, len(mine), block_m)]
        order += mine
        ends.append(len(order))
    tiles += [(experts, 0)] * (count_tiles(len(slots), experts, block_m) - len(tiles))
    columns = order, [e for e, _ in tiles], [row for _, row in tiles], [*ends, 0]
    return Alignment(*(torch.tensor(column, dtype=torch.int32) for column in columns))


def check(chosen: torch.Tensor, experts: int, block_m: int) -> None:
    wanted = one_by_one(chosen, experts, block_m)
    for align in (align_experts, align_experts_torch):
        for ours, theirs in zip(align(chosen, experts, block_m), wanted, strict=True):
            assert ours.dtype == torch.int32 and torch.equal(ours, theirs)


@pytest.mark.parametrize("block_m", [16, 128])
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts"), [(1, 1, 1), (1, 4, 9), (3, 2, 2), (60, 3, 7), (170, 3, 60)]
)
def test_one_program_sorts_alone(tokens, top_k, experts, block_m):
    check(choices(tokens, top_k, experts), experts, block_m)


@pytest.mark.parametrize(("tokens", "experts"), [(257, 5), (700, 33)])
def test_several_programs_sort_together(tokens, experts):
    """More choices than one sorts, the last program with a few of them only."""
    check(choices(tokens, 2, experts), experts, 32)


def test_programs_sort_more_where_there_would_be_too_many(monkeypatch):
    monkeypatch.setattr(routing_rows_triton, "ALONE", 16)
    monkeypatch.setattr(routing_rows_triton, "CHUNK", 16)
    monkeypatch.setattr(routing_rows_triton, "MAX_CHUNKS", 3)
    check(choices(65, 3, 20), 20, 16)


@pytest.mark.slow
def test_many_experts_in_small_steps():
    check(choices(20, 10, 513), 513, 16)


@pytest.mark.parametrize("tokens", [40, 600])
def test_all_choose_the_same(tokens):
    check(torch.full((tokens, 1), 3), 5, 16)


def test_choices_at_any_stride():
    check(choices(30, 4, 9).t().contiguous().t(), 9, 16)
    check(choices(30, 4, 9)[::3, 1:3], 9, 16)


def test_nothing_to_sort():
    for align in (align_experts, align_experts_torch):
        order, *tiles, ends = align(torch.empty(0, 2, dtype=torch.int64), 4, 16)
        assert [len(order), *map(len, tiles)] == [0, 0, 0] and ends.tolist() == [0] * 5


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 100), (4, 8, 2050), (0, 2, 8), (3, 2, 0)])
def test_sums_equal_those_of_float64(shape, dtype, weigh):
    generator = torch.Generator().manual_seed(sum(shape))
    rows = torch.randn(shape, generator=generator).to(dtype)
    weights = torch.rand(shape[:2], generator=generator) if weigh else None
    got, plain = sum_experts(rows, weights), sum_experts_torch(rows, weights)
    exact = (rows.double() * (1.0 if weights is None else weights[..., None].double())).sum(1)
    assert got.dtype == dtype and got.shape == (shape[0], shape[2])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=eps, atol=2e-6)
    torch.testing.assert_close(got, plain, rtol=eps, atol=2e-6)


def test_sums_are_of_rows_at_any_stride_and_pass_nan_on():
    around = torch.full((4, 3, 20), torch.nan)
    rows = around[:, :2, 3:-1]
    rows.copy_(torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(0)))
    weights = torch.rand(2, 4, generator=torch.Generator().manual_seed(1)).t()
    want = sum_experts(rows.contiguous(), weights.contiguous())
    assert torch.equal(sum_experts(rows, weights), want) and want.isfinite().all()
    rows[1, 0, 5], weights[3, 1] = torch.nan, torch.nan
    nan = sum_experts(rows, weights).isnan()
    assert nan[3].all() and nan[1].nonzero().flatten().tolist() == [5] and nan.sum() == 17


@pytest.mark.parametrize("tokens", [3, 300])
def test_sorting_is_what_torch_expects_of_it(tokens):
    torch.library.opcheck(ALIGN, (choices(tokens, 2, 5), 5, 16))


@pytest.mark.parametrize("weigh", [False, True])
def test_summing_is_what_torch_expects_of_it(weigh):
    torch.library.opcheck(SUM, (torch.randn(3, 2, 8), torch.rand(3, 2) if weigh else None))
