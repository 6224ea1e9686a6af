"""Log-probabilities against numpy; tests/test_llm_logprobs.py holds them against transformers."""

import numpy as np
import pytest
import torch

from assembler.engine import logprobs
from assembler.engine.logprobs import ALL_TOKENS, token_logprobs
from assembler.engine.outputs import Logprob
from assembler.engine.sampler import Sampler
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence

VOCAB = 97


def sequence(prompt=(1,), **params):
    return Sequence("r", list(prompt), SamplingParams(**params), max_length=100)


def random_logits(rows, seed=0):
    return 2.0 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def reference(logits):
    """log softmax of rows in float64."""
    x = logits.double().numpy()
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("chunk", [2, 256])
def test_values_ranks_and_counts(chunk, monkeypatch):
    monkeypatch.setattr(logprobs, "_CHUNK", chunk)
    logits = random_logits(6)
    expected = reference(logits)
    likeliest = np.argsort(-expected, axis=-1)
    token_ids = [int(likeliest[0, 0]), int(likeliest[1, 4]), 7, 0, VOCAB - 1, 3]
    counts = [3, 5, 0, 1, ALL_TOKENS, VOCAB]
    found = token_logprobs(logits, token_ids, counts)
    for row, (own, count) in enumerate(zip(token_ids, counts, strict=True)):
        width = VOCAB if count == ALL_TOKENS else count
        assert found[row].token_ids == [own, *likeliest[row, :width]]
        values = expected[row, found[row].token_ids]
        np.testing.assert_allclose(found[row].logprobs, values, atol=1e-5)
        assert found[row].rank == list(likeliest[row]).index(own) + 1
    assert found[0].rank == 1 and found[1].rank == 5


def test_the_entries_users_see():
    logits = random_logits(1)
    ranking = logits[0].argsort(descending=True).tolist()
    [unlikely] = token_logprobs(logits, [ranking[30]], [2])
    entries = unlikely.described(lambda token_id: f"<{token_id}>")
    assert list(entries) == [ranking[30], ranking[0], ranking[1]]  # the token's own and 2 more
    assert [entry.rank for entry in entries.values()] == [31, 1, 2]
    assert entries[ranking[0]].decoded_token == f"<{ranking[0]}>"
    [likely] = token_logprobs(logits, [ranking[1]], [2])
    entries = likely.described(None)
    assert list(entries) == [ranking[1], ranking[0]]
    assert entries[ranking[1]] == Logprob(likely.logprobs[0], 2, None)


def test_equal_logits_have_the_best_rank():
    [found] = token_logprobs(torch.zeros(1, 5), [4], [2])
    assert found.described(None)[4].rank == 1


def test_they_are_of_the_model_not_of_the_settings():
    """Bias, penalty, temperature and top-k change what is drawn, not what is reported."""
    logits = random_logits(2, seed=3)
    changed = sequence(
        logprobs=2,
        logit_bias={5: 100.0},
        repetition_penalty=1.7,
        temperature=0.3,
        top_k=1,
    )
    silent = sequence()
    [token_id, _] = Sampler(seed=0).sample(logits, [changed, silent])
    assert token_id == 5
    [found] = changed.sampling.logprobs
    np.testing.assert_allclose(found.logprobs[0], reference(logits)[0, 5], atol=1e-5)
    assert found.rank > 1 and silent.sampling.logprobs == []


def test_greedy_sequences_get_them_as_well():
    logits = random_logits(1)
    made = sequence(temperature=0.0, logprobs=0)
    [token_id] = Sampler().sample(logits, [made])
    assert made.sampling.logprobs == token_logprobs(logits, [token_id], [0])
    assert made.sampling.logprobs[0].rank == 1


def test_a_step_that_is_repeated_adds_nothing_twice():
    made = sequence(prompt=[1, 2, 3, 4], logprobs=1, prompt_logprobs=1)
    sampler, logits = Sampler(seed=0), random_logits(3)
    for _ in range(2):
        sampler.score_prompt(made, 0, logits[:2])
        sampler.score_prompt(made, 2, logits[2:])
        sampler.sample(logits[:1], [made])
    assert len(made.sampling.logprobs) == 1
    assert [known.token_ids[0] for known in made.sampling.prompt_logprobs] == [2, 3, 4]
    assert made.sampling.prompt_logprobs == token_logprobs(logits, [2, 3, 4], [1, 1, 1])


def test_a_sequence_without_a_token_gets_none():
    made = sequence(logprobs=1)
    assert Sampler().sample(torch.full((1, VOCAB), torch.nan), [made]) == [None]
    assert made.sampling.logprobs == []
