"""Requests with every parameter at once: each gets what it gets alone, however it is run."""

import random

import pytest
from engine_fakes import VOCAB, MemoryModel, make_engine, run

from assembler.engine.sampling_params import SamplingParams

CHOICES = {
    "temperature": (0.0, 0.5, 1.0, 2.5),
    "top_p": (1.0, 0.9, 0.4),
    "top_k": (0, 1, 3, 10, 60),
    "min_p": (0.0, 0.05),
    "presence_penalty": (0.0, 1.5, -0.5),
    "frequency_penalty": (0.0, 0.7),
    "repetition_penalty": (1.0, 1.4, 0.8),
    "min_tokens": (0, 3),
    "stop_token_ids": ((), (3, 9), tuple(range(20))),
    "logit_bias": (None, {5: 4.0, 9: -100.0}),
    "allowed_token_ids": (None, tuple(range(10, 40))),
    "logprobs": (None, 0, 3),
    "prompt_logprobs": (None, 2),
    "n": (1, 2),
}


def mixed_requests(count, seed):
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        params = {name: rng.choice(values) for name, values in CHOICES.items()}
        if params["temperature"] == 0.0:
            params["n"] = 1
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))]
        params = SamplingParams(**params, seed=number, max_tokens=rng.randint(3, 14))
        requests.append((f"r{number}", prompt, params))
    return requests


def generate(requests, **way):
    engine = make_engine(MemoryModel(), seed=None, **way)
    for request in requests:
        engine.add_request(*request)
    return {name: (o.outputs, o.prompt_logprobs) for name, o in run(engine).items()}


REQUESTS = mixed_requests(64, seed=0)
WAYS = {
    "together": {},
    "chunks": {"max_num_batched_tokens": 16, "max_num_seqs": 16},
    "preemption": {"num_pages": 20, "max_model_len": 65},
    "no prefix caching": {"prefix_caching": False},
}


@pytest.fixture(scope="module")
def alone():
    return {name: value for r in REQUESTS for name, value in generate([r]).items()}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_parameter_in_one_batch(way, alone):
    assert generate(REQUESTS, **way) == alone


def test_the_requests_are_as_mixed_as_they_should_be(alone):
    samples = [sample for outputs, _ in alone.values() for sample in outputs]
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    assert len({tuple(sample.token_ids) for sample in samples}) > 0.9 * len(samples)
