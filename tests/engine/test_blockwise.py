"""Searches by blocks against torch's own."""

import pytest
import torch

from assembler.engine.blockwise import invert_cdf, largest, top_k

SIZES = [(3, 64), (4, 640), (1, 64 * 100), (5, 1000), (2, 7)]


def random_rows(rows, size, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("shift", [0.0, -9.0], ids=["around zero", "negative"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_the_largest(rows, size, dtype, shift):
    values = (random_rows(rows, size) + shift).to(dtype)
    best, column = largest(values)
    assert torch.equal(best, values.amax(-1))
    assert torch.equal(values.gather(-1, column.unsqueeze(1)).squeeze(1), best)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [640, 1000])
def test_nan_and_infinities(size, dtype):
    values = random_rows(6, size).to(dtype)
    values[0, 300] = torch.nan
    values[1, 200] = torch.inf
    values[2] = -torch.inf
    values[3, 17] = torch.tensor(torch.nan).copysign(torch.tensor(-1.0))
    values[4] = -torch.inf
    values[4, 9] = -3.0
    best, column = largest(values)
    assert best[0].isnan() and best[1:3].tolist() == [torch.inf, -torch.inf]
    assert best[3].isnan() and best[4] == -3.0
    assert column[[0, 1, 3, 4]].tolist() == [300, 200, 17, 9]
    assert best[5] == values[5].max()


@pytest.mark.parametrize("k", [1, 5, 25])
@pytest.mark.parametrize(("rows", "size"), [(4, 640), (3, 64 * 200), (2, 1000)])
def test_the_k_largest(rows, size, k):
    values = random_rows(rows, size)
    found, columns = top_k(values, k)
    assert torch.equal(found, values.topk(k).values)
    assert torch.equal(values.gather(-1, columns), found)


def test_the_k_largest_of_many_equals():
    """All in one block, or spread over more blocks than k."""
    values = torch.zeros(2, 64 * 100)
    values[0, 64:96] = 1.0
    values[1, ::64] = 1.0
    found, columns = top_k(values, 20)
    assert (found == 1).all()
    assert all(len(set(row)) == 20 for row in columns.tolist())
    assert (values.gather(-1, columns) == 1).all()


@pytest.mark.parametrize("size", [640, 1000])
def test_cumulative_sums_are_inverted(size):
    weights = random_rows(50, size).exp() * 7
    weights[:, ::3] = 0.0
    numbers = torch.rand(50, 1, generator=torch.Generator().manual_seed(1))
    columns = invert_cdf(weights, numbers).squeeze(1).tolist()
    for row, column in enumerate(columns):
        exact = weights[row].double()
        target = float(numbers[row, 0]) * float(exact.sum())
        before, after = float(exact[:column].sum()), float(exact[: column + 1].sum())
        assert before - 1e-3 <= target <= after + 1e-3
        assert weights[row, column] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_of_equal_values_is_found_however_many_rows_there_are(dtype):
    generator = torch.Generator().manual_seed(5)
    values = torch.randint(-3, 4, (40, 4096), generator=generator).to(dtype)
    values[7] = -1  # all equal
    together = largest(values)
    first = (values == values.amax(dim=-1, keepdim=True)).int().argmax(dim=-1)
    assert torch.equal(together[1], first)
    for row in range(40):
        alone = largest(values[row : row + 1])
        assert (alone[0].item(), alone[1].item()) == (together[0][row], first[row])
