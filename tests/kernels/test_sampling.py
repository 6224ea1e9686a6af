"""The sampling kernels: tokens as drawn in torch by sorting, with the same numbers."""

from __future__ import annotations

import math

import pytest
import torch

from assembler.kernels.sampling_torch import (
    NO_TOKEN,
    RowSettings,
    draw_by_number,
    kept_weights,
)
from assembler.kernels.sampling_triton import sample_by_number

# (temperature, top_k, top_p, min_p)
ROWS = [
    (1.0, 0, 1.0, 0.0),
    (0.3, 0, 1.0, 0.0),
    (7.0, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (2.0, 202, 1.0, 0.0),
    (1.0, 203, 1.0, 0.0),
    (1.0, 1000, 0.9, 0.0),
    (1.0, 0, 0.5, 0.0),
    (1.0, 0, 1e-6, 0.0),
    (1.0, 0, 0.999, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.0, 0, 1.0, 1.0),
    (1.7, 7, 0.8, 0.05),
    (5.0, 30, 0.6, 0.0),
]


def settings_of(rows: list[tuple]) -> RowSettings:
    temperature, top_k, top_p, min_p = (list(values) for values in zip(*rows, strict=True))
    logs = [math.log(p) if p > 0 else -math.inf for p in min_p]
    floats = [torch.tensor(v, dtype=torch.float32) for v in (temperature, top_p, logs)]
    return RowSettings(floats[0], torch.tensor(top_k, dtype=torch.int32), *floats[1:])


def random_logits(rows: int, vocab: int = 203, seed: int = 0) -> torch.Tensor:
    """At a stride, in memory that is NaN around them."""
    around = torch.full((rows, vocab + 3), torch.nan)
    generator = torch.Generator().manual_seed(seed)
    around[:, :-3] = 3 * torch.randn(rows, vocab, generator=generator)
    return around[:, :-3]


def uniforms(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(2))
def test_the_token_of_a_number_is_the_one_that_sorting_gives(seed):
    logits, settings = random_logits(len(ROWS), seed=seed), settings_of(ROWS)
    numbers = uniforms(len(ROWS), seed)
    got = sample_by_number(logits, *settings, numbers)
    weights = kept_weights(logits.double(), settings)
    assert got.tolist() == draw_by_number(weights, numbers).tolist()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_all_kept_tokens_and_no_others_are_drawn(row):
    """Numbers in the middle of each token's share find it."""
    logits = random_logits(1, vocab=23)
    weights = kept_weights(logits.double(), settings_of([row]))[0]
    kept = weights.nonzero().flatten()
    shares = weights / weights.sum()
    middles = (shares.cumsum(0) - shares / 2)[kept].float()
    kept, middles = kept[shares[kept] > 1e-5], middles[shares[kept] > 1e-5]
    many = len(kept)
    got = sample_by_number(logits.expand(many, -1), *settings_of([row] * many), middles)
    assert got.tolist() == kept.tolist()


@pytest.mark.parametrize("vocab", [1, 5, 64, 4096, 9001])
def test_vocabularies_of_any_size(vocab):
    """Also of several blocks, the last of them not whole."""
    rows = [(1.0, 0, 1.0, 0.0), (1.0, 3, 0.9, 0.0), (0.0, 0, 1.0, 0.0)]
    logits, settings, numbers = random_logits(3, vocab), settings_of(rows), uniforms(3)
    got = sample_by_number(logits, *settings, numbers)
    weights = kept_weights(logits[:2].double(), settings_of(rows[:2]))
    want = [*draw_by_number(weights, numbers[:2]).tolist(), int(logits[2].argmax())]
    assert got.tolist() == want


LONG_ROWS = {
    "few under top-p": (0.5, 0, 0.6, 0.0),
    "few under min-p and top-p": (1.0, 0, 0.7, 0.2),
    "more under top-p than are looked at": (5.0, 0, 0.95, 0.0),
    "more under min-p than are looked at": (5.0, 0, 1.0, 1e-2),
    "a larger top-k than is looked at": (1.0, 3000, 0.9, 0.0),
}


@pytest.mark.parametrize("row", LONG_ROWS.values(), ids=LONG_ROWS)
def test_rows_of_which_few_or_many_tokens_can_be_drawn(row):
    """Few are searched by themselves, many in the row; logits in 16 bits have many ties."""
    logits = random_logits(2, 9001, seed=4).bfloat16()
    logits = logits[:, torch.argsort(logits[0].float(), descending=True)]  # both chunks matter
    settings, numbers = settings_of([row] * 2), uniforms(2)
    together = sample_by_number(logits, *settings, numbers)
    assert (
        together.tolist()
        == draw_by_number(kept_weights(logits.double(), settings), numbers).tolist()
    )
    alone = sample_by_number(logits[1:], *(column[1:] for column in (*settings, numbers)))
    assert alone.tolist() == together[1:].tolist()


def test_what_many_equal_tokens_tie_for_is_searched_in_the_row():
    logits = torch.zeros(3, 3000)
    logits[:, 7] = 1.0
    got = sample_by_number(
        logits, *settings_of([(1.0, 5, 1.0, 0.0)] * 3), torch.tensor([0.2, 0.5, 0.9])
    )
    weights = kept_weights(logits.double(), settings_of([(1.0, 5, 1.0, 0.0)] * 3))
    assert got.tolist() == draw_by_number(weights, torch.tensor([0.2, 0.5, 0.9])).tolist()


def test_ties_at_the_border_are_all_kept():
    logits = torch.tensor([[2.0, 1.0, -0.0, 1.0, 1.0, 0.0]]).expand(6, -1)
    numbers = torch.tensor([0.1, 0.52, 0.6, 0.7, 0.9, 0.97])
    for row in ((1.0, 2, 1.0, 0.0), (1.0, 0, 0.6, 0.0)):
        got = sample_by_number(logits, *settings_of([row] * 6), numbers)
        assert set(got.tolist()) == {0, 1, 3, 4}, row
    got = sample_by_number(logits, *settings_of([(1.0, 5, 1.0, 0.0)] * 6), numbers)
    assert set(got.tolist()) == {0, 1, 2, 3, 4, 5}, "0 and -0 are alike"


def test_rows_that_are_no_distribution_get_no_token():
    logits = random_logits(5)
    logits[1, 7], logits[2, 7], logits[3] = torch.nan, torch.inf, -torch.inf
    logits[4, ::2] = -torch.inf
    got = sample_by_number(logits, *settings_of([(1.0, 5, 0.9, 0.0)] * 5), uniforms(5)).tolist()
    assert got[1:4] == [NO_TOKEN] * 3 and min(got[0], got[4]) >= 0 and got[4] % 2 == 1


def test_extreme_numbers_and_temperatures():
    logits = random_logits(3)
    numbers = torch.tensor([0.0, 1.0, 0.5])
    got = sample_by_number(logits, *settings_of([(1.0, 0, 1.0, 0.0)] * 3), numbers)
    assert got[0] == 0 and 0 <= got[1] < 203
    cold = sample_by_number(1e4 * logits, *settings_of([(1e-3, 0, 1.0, 0.0)] * 3), numbers)
    assert torch.equal(cold, logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_sampled_in_float32(dtype):
    logits, numbers = random_logits(4).to(dtype), uniforms(4)
    settings = settings_of([(0.8, 20, 0.9, 0.0)] * 4)
    got = sample_by_number(logits, *settings, numbers)
    assert torch.equal(got, sample_by_number(logits.float(), *settings, numbers))


def test_no_rows():
    empty = settings_of(ROWS[:1])._replace(temperature=torch.empty(0))
    assert sample_by_number(torch.empty(0, 9), *empty, torch.empty(0)).shape == (0,)


def test_the_operation_is_what_torch_expects_of_it():
    operation = torch.ops.assembler.sample_by_number.default
    arguments = (random_logits(2, 16).clone(), *settings_of(ROWS[:2]), uniforms(2))
    torch.library.opcheck(operation, arguments)
