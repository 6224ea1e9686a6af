"""Biases and bans against transformers' processors and plain loops."""

import random

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from assembler.engine.sampler import Sampler, edited_logits
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence

VOCAB = 61


def sequence(prompt, output=(), eos=(), bad_words=(), **params):
    made = Sequence(
        "r",
        prompt,
        SamplingParams(**params),
        max_length=1000,
        eos_token_ids=eos,
        bad_words=bad_words,
    )
    made.token_ids += output
    return made


def random_logits(rows, seed=0):
    return 2.0 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def banned(row):
    return set((row == -torch.inf).nonzero().squeeze(1).tolist())


def test_bias_is_that_of_transformers():
    logits = random_logits(1)
    bias = {3: 5.0, 0: -100.0, VOCAB - 1: 0.25}
    judge = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    expected = judge(torch.tensor([[1, 2]]), logits.clone())
    found = edited_logits(logits, [sequence([1, 2], logit_bias=bias)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", range(20))
def test_bad_words_are_those_of_transformers(seed):
    """Few different tokens, so that beginnings of words are met often."""
    rng = random.Random(seed)
    words = {tuple(rng.randrange(4) for _ in range(rng.randint(1, 4))) for _ in range(6)}
    output = [rng.randrange(4) for _ in range(rng.randint(1, 12))]
    logits = random_logits(1, seed)
    judge = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=[])
    expected = judge(torch.tensor([output]), logits.clone())
    found = edited_logits(logits, [sequence([9], output, bad_words=sorted(words))])
    assert torch.equal(found, expected)


def test_words_that_the_prompt_begins_may_be_completed():
    logits = random_logits(1)
    assert banned(edited_logits(logits, [sequence([1, 2], bad_words=[[2, 3]])])[0]) == set()
    assert banned(edited_logits(logits, [sequence([1], [2], bad_words=[[2, 3]])])[0]) == {3}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_min_tokens_is_that_of_transformers(count):
    prompt, output = [1, 2, 3], [5] * count
    logits = random_logits(1)
    judge = MinNewTokensLengthLogitsProcessor(len(prompt), 3, [7, 8, 9])
    expected = judge(torch.tensor([prompt + output]), logits.clone())
    made = sequence(prompt, output, eos=[7, 8], stop_token_ids=[9], min_tokens=3)
    assert torch.equal(edited_logits(logits, [made]), expected)


def test_min_tokens_keeps_an_eos_away_that_is_ignored():
    made = sequence([1], eos=[7], ignore_eos=True, min_tokens=1)
    assert banned(edited_logits(random_logits(1), [made])[0]) == {7}


def test_only_allowed_tokens():
    logits = random_logits(2)
    rows = [sequence([1], allowed_token_ids=[4, 2, 4]), sequence([1])]
    found = edited_logits(logits, rows)
    assert banned(found[0]) == set(range(VOCAB)) - {2, 4}
    assert torch.equal(found[0, [2, 4]], logits[0, [2, 4]])
    assert torch.equal(found[1], logits[1])


def test_all_rules_at_once_in_a_mixed_batch():
    rows = [
        sequence([1], logit_bias={2: 3.0, 7: 1.0}, allowed_token_ids=[2, 3, 4], bad_words=[[3]]),
        sequence([1], temperature=0.0),
        sequence([1], [5], bad_words=[[5, 6], [7]], eos=[0], min_tokens=2),
        sequence([1], logit_bias={0: -1.0}),
    ]
    logits = random_logits(4)
    before = logits.clone()
    found = edited_logits(logits, rows)
    assert torch.equal(logits, before), "the logits are the caller's"
    expected = logits.clone()
    expected[0, 2] += 3.0
    expected[0, [i for i in range(VOCAB) if i not in (2, 4)]] = -torch.inf
    expected[2, [6, 7, 0]] = -torch.inf
    expected[3, 0] -= 1.0
    torch.testing.assert_close(found, expected)
    for row in range(4):  # and alone
        assert torch.equal(edited_logits(logits[row : row + 1], rows[row : row + 1])[0], found[row])


def test_the_bias_comes_before_the_penalty():
    """As in vLLM: what the bias made of the logit is what is penalised."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = -1.0
    made = sequence([3], logit_bias={3: 5.0}, repetition_penalty=2.0)
    assert edited_logits(logits, [made])[0, 3] == 2.0


def test_a_sequence_that_may_not_go_on_fails_alone():
    rows = [sequence([1], allowed_token_ids=[5], bad_words=[[5]]), sequence([1], temperature=0.0)]
    logits = random_logits(2)
    assert Sampler(seed=0).sample(logits, rows) == [None, int(logits[1].argmax())]
    assert "allowed_token_ids, bad_words and min_tokens leave none" in rows[0].sampling.failure
    assert rows[1].sampling.failure is None


def test_half_precision_logits():
    logits = random_logits(1).bfloat16()
    found = edited_logits(logits, [sequence([1], logit_bias={4: 0.001})])
    assert found.dtype == torch.float32
    assert found[0, 4] == logits[0, 4].float() + 0.001
