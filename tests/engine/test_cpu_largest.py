"""The likeliest token found by the CPU kernels: the one that torch finds."""

from __future__ import annotations

import pytest
import torch

from assembler.engine.sampler import Sampler
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence
from assembler.kernels.cpu_library import cpu_library
from assembler.kernels.cpu_program import largest_columns

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler")

DTYPES = [torch.float32, torch.bfloat16]


def random_rows(rows: int, size: int) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shift", [0.0, -9.0], ids=["around zero", "negative"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 15), (1, 16), (5, 1000), (33, 4096)])
def test_it_is_the_first_of_the_largest(rows: int, size: int, dtype: torch.dtype, shift: float):
    values = (random_rows(rows, size) + shift).to(dtype)
    values[:, size // 2] = values[:, -1] = values.amax(-1)  # several are as large
    assert largest_columns(values) == values.argmax(-1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, 640, 1003])
def test_rows_without_a_finite_largest_number_have_none(size: int, dtype: torch.dtype):
    values = random_rows(7, size).to(dtype)
    values[0, size // 2] = torch.nan
    values[1, 2] = torch.inf
    values[2] = -torch.inf
    values[3, -1] = torch.tensor(torch.nan).copysign(torch.tensor(-1.0))
    values[4] = -torch.inf
    values[4, 5] = -3.0
    values[5, 1] = -torch.inf
    expected = [-1, -1, -1, -1, 5, *values[5:].argmax(-1).tolist()]
    assert largest_columns(values) == expected


def test_rows_that_are_not_side_by_side():
    values = random_rows(4, 64)
    assert largest_columns(values[:, ::2]) == values[:, ::2].argmax(-1).tolist()


SETTINGS = [
    {"temperature": 0},
    {"temperature": 0, "logit_bias": {3: 50.0}},
    {"temperature": 0, "repetition_penalty": 1.4},
    {"temperature": 0, "logprobs": 2},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.0, "top_k": 3, "seed": 6},
]


def sampled(
    params: list[dict], logits: torch.Tensor, compiled: bool
) -> tuple[list[int | None], list[Sequence]]:
    sampler = Sampler(seed=1)
    sampler.has_cpu_kernels = compiled
    sequences = [Sequence("r", [1], SamplingParams(**each), max_length=9) for each in params]
    return sampler.sample(logits, sequences), sequences


@pytest.mark.parametrize("params", [SETTINGS[:1] * 6, SETTINGS], ids=["greedy", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sampler_gives_the_same_with_and_without(params: list[dict], dtype: torch.dtype):
    logits = random_rows(6, 97).to(dtype)
    logits[0, 40] = torch.nan
    logits[4] = -torch.inf
    (found, sequences), (expected, others) = (sampled(params, logits, b) for b in (True, False))
    assert found == expected and found[0] is None and found[4] is None
    assert None not in (*found[1:4], found[5])
    for sequence, other in zip(sequences, others, strict=True):
        assert sequence.sampling.failure == other.sampling.failure
        assert sequence.sampling.logprobs == other.sampling.logprobs
    assert "NaN" in sequences[0].sampling.failure
