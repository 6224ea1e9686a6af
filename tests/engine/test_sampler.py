"""The sampler against plain numpy code that sorts and adds one row at a time."""

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from assembler.engine import candidates
from assembler.engine.blockwise import invert_cdf
from assembler.engine.candidates import among_likeliest, head_width, whole_vocabulary
from assembler.engine.sampler import Sampler
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence

VOCAB = 97


def sequence(index=0, **params) -> Sequence:
    return Sequence("r", [1], SamplingParams(**params), max_length=100, index=index)


def reference_distribution(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Temperature, min-p, top-k, top-p, each renormalised, one row in float64."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    p[p < min_p * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    if top_k > 0:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = 0.0
    for token in order:
        if before >= top_p:
            p[token] = 0
        else:
            before += p[token]
    return p / p.sum()


SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 7.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": VOCAB - 1, "temperature": 2.0},
    {"top_k": VOCAB + 50},
    {"top_k": -1, "top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.999999},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.05, "top_k": 7, "top_p": 0.8, "temperature": 1.7},
    {"top_k": 30, "top_p": 0.6, "temperature": 5.0},
]


def random_logits(rows, seed=0, scale=2.0):
    return scale * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def check_distributions(probs, logits, all_settings):
    """`probs` [R, V], not normalised, against the reference."""
    probs = (probs / probs.sum(-1, keepdim=True)).double().numpy()
    for row, settings in enumerate(all_settings):
        expected = reference_distribution(logits[row].double().numpy(), **settings)
        np.testing.assert_allclose(probs[row], expected, atol=2e-6, err_msg=str(settings))
        assert ((probs[row] > 0) == (expected > 0)).all(), settings


def weights(logits, params):
    """[R, V] of the whole vocabulary."""
    return whole_vocabulary(logits, params).weights


@pytest.mark.parametrize("head", [8, 1024], ids=["nucleus wider than the head", "one look"])
def test_distributions_equal_the_reference_in_one_mixed_batch(head, monkeypatch):
    monkeypatch.setattr(candidates, "_NUCLEUS_HEAD", head)
    logits = random_logits(len(SETTINGS))
    before = logits.clone()
    found = weights(logits, [SamplingParams(**s) for s in SETTINGS])
    assert torch.equal(logits, before), "the logits are the caller's"
    check_distributions(found, logits, SETTINGS)


PROCESSORS = {
    "temperature": TemperatureLogitsWarper,
    "min_p": MinPLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.4},
        {"top_k": 3},
        {"top_k": VOCAB + 1},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"min_p": 0.02},
        {"temperature": 1.9, "min_p": 0.03, "top_k": 9, "top_p": 0.7},
    ],
)
def test_distributions_are_those_of_transformers(settings):
    logits = random_logits(40, seed=12)
    judged = logits.clone()
    for name, processor in PROCESSORS.items():
        if name in settings:
            judged = processor(settings[name])(torch.zeros(40, 1, dtype=torch.long), judged)
    found = weights(logits, [SamplingParams(**settings)] * 40)
    found /= found.sum(-1, keepdim=True)
    torch.testing.assert_close(found, judged.softmax(-1), rtol=1e-5, atol=1e-7)
    assert torch.equal(found > 0, judged.softmax(-1) > 0)


@pytest.mark.parametrize("scale", [2.0, 6.0], ids=["flat", "peaked"])
def test_the_likeliest_tokens_give_the_same_as_the_whole_vocabulary(scale, monkeypatch):
    """Where all candidates are among them."""
    monkeypatch.setattr(candidates, "_HEADS", (24, 64))
    settings = [s for s in SETTINGS if head_width(SamplingParams(**s)) is not None] * 20
    settings = [s for s in settings if s.get("top_p") != 0.999999]  # no borders within rounding
    params = [SamplingParams(**s) for s in settings]
    logits = random_logits(len(params), seed=9, scale=scale)
    before = logits.clone()
    found, incomplete = among_likeliest(logits, params, 64)
    assert torch.equal(logits, before), "the logits are the caller's"
    assert not incomplete.any()
    assert (found.token_ids.diff(dim=-1) > 0).all(), "in the order of the vocabulary"
    spread = torch.zeros_like(logits).scatter_(-1, found.token_ids, found.weights)
    check_distributions(spread, logits, settings)


@pytest.mark.parametrize("settings", [{"top_p": 0.99}, {"min_p": 1e-4}, {"top_k": 5}])
def test_rows_whose_candidates_are_not_all_there_are_named(settings):
    """Few tokens hold the mass of the first row, the tokens of the second are all alike."""
    logits = torch.stack([torch.arange(VOCAB) * 2.0, torch.zeros(VOCAB)])
    params = [SamplingParams(**settings)] * 2
    assert among_likeliest(logits, params, 64)[1].tolist() == [False, True]
    tokens = Sampler(seed=0).sample(logits[1:].expand(2000, -1), [sequence(**settings)] * 2000)
    assert set(tokens) == set(range(VOCAB))


def test_a_nucleus_of_more_tokens_than_are_looked_at():
    """min-p leaves all tokens: top-p counts the mass of all, also of those nobody looked at."""
    settings = {"min_p": 1e-3, "top_p": 0.7}
    logits = -torch.linspace(0, 1, VOCAB)[None]
    assert among_likeliest(logits, [SamplingParams(**settings)], 64)[1].tolist() == [True]
    tokens = Sampler(seed=0).sample(logits.expand(4000, -1), [sequence(**settings)] * 4000)
    expected = reference_distribution(logits[0].double().numpy(), **settings)
    assert 50 < len(set(tokens)) == (expected > 0).sum()


def test_a_row_does_not_depend_on_the_rows_beside_it():
    logits = random_logits(len(SETTINGS), seed=1)
    params = [SamplingParams(**s) for s in SETTINGS]
    together = weights(logits, params)
    for row in range(len(SETTINGS)):
        alone = weights(logits[row : row + 1], params[row : row + 1])
        assert torch.allclose(
            together[row] / together[row].sum(), alone[0] / alone[0].sum(), atol=1e-6
        ), SETTINGS[row]
        assert torch.equal(together[row] > 0, alone[0] > 0)


def test_how_many_tokens_are_looked_at_is_a_matter_of_the_row_alone(monkeypatch):
    """Another number of tokens could be another sum in the last bit."""
    monkeypatch.setattr(candidates, "_HEADS", (24, 64))
    mixed = [{"top_p": 0.3}, {"top_k": 40}, {"top_k": 5}, {}, {"top_k": 60}, {"min_p": 0.5}]
    seen = []

    def spied(logits, params, width):
        seen.extend((p, width) for p in params)
        return among_likeliest(logits, params, width)

    monkeypatch.setattr("assembler.engine.sampler.among_likeliest", spied)
    rows = [sequence(seed=number, **settings) for number, settings in enumerate(mixed)]
    logits = random_logits(len(rows), seed=3)
    together = Sampler().sample(logits, rows)
    widths = dict(seen)
    assert [widths.get(row.params) for row in rows] == [24, 64, 24, None, None, 24]
    seen.clear()
    for number, row in enumerate(rows):
        assert Sampler().sample(logits[number : number + 1], [row]) == [together[number]]
    assert dict(seen) == widths


def test_draws_follow_the_distribution():
    settings = {"temperature": 1.5, "top_k": 6, "top_p": 0.9}
    logits = random_logits(1, seed=2)
    expected = reference_distribution(logits[0].double().numpy(), **settings)
    count = 40_000
    rows = [sequence(**settings)] * count
    drawn = Sampler(seed=3).sample(logits.expand(count, -1), rows)
    frequencies = np.bincount(drawn, minlength=VOCAB) / count
    assert (frequencies[expected == 0] == 0).all()
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(frequencies - expected) <= 4.5 * deviation).all()


def test_greedy_rows_beside_drawing_rows():
    logits = random_logits(6, seed=4)
    rows = [sequence(temperature=0, top_k=3, seed=1), sequence(temperature=1.0)] * 3
    tokens = Sampler(seed=0).sample(logits, rows)
    assert tokens[::2] == logits[::2].argmax(-1).tolist()


def test_a_tiny_temperature_is_greedy_without_overflow():
    logits = random_logits(3, seed=5, scale=1e4)
    rows = [sequence(temperature=t) for t in (1e-5, 1e-30, 1e-3)]
    assert Sampler(seed=0).sample(logits, rows) == logits.argmax(-1).tolist()


def test_half_precision_logits_are_sampled_in_fp32():
    logits = random_logits(64, seed=6).bfloat16()
    rows = [sequence(temperature=0.8, seed=i) for i in range(64)]
    again = [sequence(temperature=0.8, seed=i) for i in range(64)]
    assert Sampler().sample(logits, rows) == Sampler().sample(logits.float(), again)


def test_a_seed_gives_the_same_draws_in_every_batch():
    logits = random_logits(1, seed=7, scale=0.5)

    def draws(position, size, index=0, **others):
        rows = [sequence(**others) for _ in range(size)]
        rows[position] = mine = sequence(index=index, seed=11)
        sampler = Sampler()
        for _ in range(20):
            mine.token_ids.append(sampler.sample(logits.expand(size, -1), rows)[position])
        return mine.generated_token_ids

    alone = draws(0, 1)
    assert len(set(alone)) > 5
    assert draws(3, 8) == draws(0, 2) == draws(1, 3, seed=5, top_k=3) == alone
    assert draws(0, 1, index=1) != alone, "another sample of the same request"


def test_the_seed_of_the_sampler_rules_unseeded_rows():
    logits = random_logits(1, scale=0.1).expand(50, -1)
    rows = [sequence()] * 50
    assert Sampler(seed=1).sample(logits, rows) == Sampler(seed=1).sample(logits, rows)
    assert Sampler(seed=1).sample(logits, rows) != Sampler(seed=2).sample(logits, rows)
    assert Sampler().sample(logits, rows) != Sampler().sample(logits, rows)


def test_equal_logits_at_the_border_are_all_kept():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    kept = weights(logits, [SamplingParams(top_k=2)]) > 0
    assert kept.tolist() == [[True, True, True, True, False]]
    kept = weights(logits, [SamplingParams(top_p=0.5)]) > 0
    assert kept.tolist() == [[True, True, True, True, False]]


def test_more_ties_than_a_small_top_k_looks_at():
    """Every token is drawn, though the 5 likeliest could be any of them."""
    logits = torch.zeros(2000, VOCAB)
    logits[:, 0] = 1.0
    tokens = Sampler(seed=0).sample(logits, [sequence(top_k=5)] * 2000)
    assert set(tokens) == set(range(VOCAB))


def test_minus_infinity_is_never_drawn():
    logits = torch.full((200, VOCAB), -torch.inf)
    logits[:, [5, 9]] = 0.0
    tokens = Sampler(seed=0).sample(logits, [sequence(temperature=2.0)] * 200)
    assert set(tokens) == {5, 9}


@pytest.mark.parametrize("params", [{"temperature": 0}, {"top_p": 0.9}, {"top_k": 4}, {}])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, "all -inf"])
def test_rows_that_are_no_distribution_fail_alone(params, wrong):
    logits = random_logits(3, seed=8)
    healthy = Sampler(seed=0).sample(logits, [sequence(**params)] * 3)
    if wrong == "all -inf":
        logits[1] = -torch.inf
    else:
        logits[1, 40] = wrong
    tokens = Sampler(seed=0).sample(logits, [sequence(**params)] * 3)
    assert tokens == [healthy[0], None, healthy[2]]


def test_the_ends_of_the_unit_interval_draw_possible_tokens():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    probs = logits.softmax(-1)
    for uniform, expected in [(0.0, 1), (1.0, 2), (float(probs[0, 1]) - 1e-6, 1)]:
        column = int(invert_cdf(probs, torch.tensor([[uniform]])))
        if probs[0, column] == 0:  # the sampler takes the likeliest instead
            column = int(probs.argmax())
        assert column == expected


def test_no_rows_no_tokens():
    assert Sampler().sample(torch.empty(0, VOCAB), []) == []
