"""Penalties against transformers' processors and plain loops."""

import random

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from assembler.engine.penalties import PenalisedRow, TokenCounts, apply_penalties
from assembler.engine.sampler import Sampler, edited_logits
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence

VOCAB = 97


def sequence(prompt, output=(), **params):
    made = Sequence("r", prompt, SamplingParams(**params), max_length=1000)
    made.token_ids += output
    return made


def random_logits(rows, seed=0):
    return 2.0 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def tokens(rng, count):
    return [rng.randrange(VOCAB) for _ in range(count)]


def by_hand(logits, prompt, output, presence=0.0, frequency=0.0, repetition=1.0):
    """One row, one token at a time."""
    logits = logits.tolist()
    for token in set(prompt + output):
        score = logits[token]
        logits[token] = score / repetition if score > 0 else score * repetition
    for token in set(output):
        logits[token] -= presence + frequency * output.count(token)
    return torch.tensor(logits)


SETTINGS = [
    {},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6},
    {"presence_penalty": -2.0, "frequency_penalty": 1.1, "repetition_penalty": 1.9},
]


def test_a_mixed_batch_equals_the_loops():
    rng = random.Random(1)
    rows = [sequence(tokens(rng, 30), tokens(rng, n), **s) for n in (0, 1, 200) for s in SETTINGS]
    logits = random_logits(len(rows))
    before = logits.clone()
    found = edited_logits(logits, rows)
    assert torch.equal(logits, before), "the logits are the caller's"
    for row, made in enumerate(rows):
        settings = {k.removesuffix("_penalty"): v for k, v in SETTINGS[row % len(SETTINGS)].items()}
        expected = by_hand(logits[row], made.prompt_token_ids, made.generated_token_ids, **settings)
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    rng = random.Random(2)
    prompt, output = tokens(rng, 12), tokens(rng, 9)
    logits = random_logits(1, seed=3)
    judge = RepetitionPenaltyLogitsProcessor(penalty)
    expected = judge(torch.tensor([prompt + output]), logits.clone())
    made = sequence(prompt, output, repetition_penalty=penalty)
    torch.testing.assert_close(edited_logits(logits, [made]), expected)


def test_the_prompt_counts_for_repetition_alone():
    logits = random_logits(1, seed=4)
    made = sequence([5, 6], presence_penalty=2.0, frequency_penalty=2.0)
    assert torch.equal(edited_logits(logits, [made]), logits)
    made = sequence([5, 6], repetition_penalty=2.0)
    changed = (edited_logits(logits, [made]) != logits).nonzero()[:, 1]
    assert changed.tolist() == [5, 6]


def test_counts_follow_a_growing_sequence():
    """Token by token, as in a run, and beyond the first size of its arrays."""
    rng = random.Random(5)
    prompt = tokens(rng, 50)
    counts, token_ids, output = TokenCounts(prompt), list(prompt), []
    for _ in range(300):
        added = [rng.randrange(5000) for _ in range(rng.randrange(3))]
        output += added
        token_ids += added
        counts.catch_up(token_ids, len(prompt))
        counts.catch_up(token_ids, len(prompt))  # nothing is counted twice
    found = dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True))
    assert found == {token: output.count(token) for token in {*prompt, *output}}


def test_minus_infinity_stays():
    logits = torch.full((1, VOCAB), -torch.inf)
    seen = TokenCounts([1, 2])
    seen.catch_up([1, 2, 2], 2)
    params = SamplingParams(repetition_penalty=1.5, presence_penalty=-2.0)
    apply_penalties(logits, [PenalisedRow(0, params, seen)])
    assert (logits == -torch.inf).all()


def test_penalties_rule_greedy_choices_as_well():
    logits = torch.zeros(1, VOCAB)
    logits[0, 7], logits[0, 8] = 1.0, 0.9
    made = sequence([1], temperature=0.0, frequency_penalty=0.2)
    for _ in range(4):
        made.token_ids += Sampler().sample(logits, [made])
    assert made.generated_token_ids == [7, 8, 7, 8]


def test_a_logit_that_a_penalty_makes_infinite_is_blamed_on_the_penalty():
    logits = torch.zeros(2, VOCAB)
    logits[:, 3] = 1e37
    rows = [sequence([3], repetition_penalty=1e-2), sequence([3])]
    assert Sampler(seed=0).sample(logits, rows) == [None, 3]
    assert "use a repetition_penalty nearer to 1" in rows[0].sampling.failure
    assert rows[1].sampling.failure is None
