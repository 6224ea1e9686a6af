"""Requests that cannot be served are refused one by one, with numbers and a remedy."""

import re

import numpy as np
import pytest
from engine_fakes import VOCAB, FakeTokenizer, MemoryModel, greedy_reference, make_engine, run

from assembler.engine.sampling_params import SamplingParams
from assembler.errors import RequestError

ONE = SamplingParams(max_tokens=1, temperature=0)


def refused(engine, prompt, params=ONE):
    with pytest.raises(RequestError) as error:
        engine.add_request("bad", prompt, params)
    assert engine.is_finished()
    engine.add_request("good", [1, 2], ONE)
    assert run(engine)["good"].outputs[0].token_ids == greedy_reference([1, 2], 1)
    return str(error.value)


def test_empty_prompts():
    assert "empty" in refused(make_engine(MemoryModel()), [])
    engine = make_engine(MemoryModel(), tokenizer=FakeTokenizer())
    with pytest.raises(RequestError, match="empty"):
        engine.add_request("bad", "", ONE)


def test_token_ids_out_of_range():
    message = refused(make_engine(MemoryModel()), [3, VOCAB, -1, VOCAB])
    assert "-1, 64." in message and "0 to 63" in message


@pytest.mark.parametrize("prompt", [[1.5], ["a"], None, [[1, 2]], 7])
def test_prompts_of_the_wrong_type(prompt):
    assert "list of token ids" in refused(make_engine(MemoryModel()), prompt)


def test_integers_of_numpy_are_token_ids():
    engine = make_engine(MemoryModel())
    engine.add_request("a", np.array([1, 2]), ONE)
    output = run(engine)["a"]
    assert output.outputs[0].token_ids == greedy_reference([1, 2], 1)
    assert all(type(i) is int for i in output.prompt_token_ids)


def test_a_prompt_longer_than_the_model():
    engine = make_engine(MemoryModel(), max_model_len=50)
    message = refused(engine, [1] * 50)
    assert "50 tokens" in message and "max_model_len" in message and "Shorten" in message
    engine.add_request("fits", [1] * 49, ONE)
    assert len(run(engine)["fits"].outputs[0].token_ids) == 1


def test_a_prompt_longer_than_the_cache():
    engine = make_engine(MemoryModel(), num_pages=5, page_size=4, max_model_len=50)
    message = refused(engine, [1] * 20)
    assert "KV cache (5 pages) is 20 tokens" in message and "kv_cache_memory_bytes" in message
    engine.add_request("fits", [1] * 5, SamplingParams(max_tokens=None))
    assert len(run(engine)["fits"].outputs[0].token_ids) == 15


def test_more_tokens_wanted_than_there_is_room_for():
    engine = make_engine(MemoryModel(), max_model_len=50)
    message = refused(engine, [1] * 45, SamplingParams(max_tokens=6))
    assert "max_tokens is 6" in message and "Set max_tokens to 5 or less" in message
    engine.add_request("fits", [1] * 45, SamplingParams(max_tokens=5))
    assert len(run(engine)["fits"].outputs[0].token_ids) == 5


def test_the_default_of_max_tokens_is_cut_to_what_fits():
    engine = make_engine(MemoryModel(), max_model_len=50)
    engine.add_request("fits", [1] * 45, SamplingParams(temperature=0))
    output = run(engine)["fits"].outputs[0]
    assert len(output.token_ids) == 5 and output.finish_reason == "length"


def test_text_needs_a_tokenizer():
    engine = make_engine(MemoryModel())
    assert "no tokenizer" in refused(engine, "hello")
    assert "stop_token_ids" in refused(engine, [1], SamplingParams(stop="x"))


def test_stop_tokens_outside_the_vocabulary():
    message = refused(make_engine(MemoryModel()), [1], SamplingParams(stop_token_ids=[64, 3]))
    assert "stop_token_ids" in message and "64." in message


def test_a_request_id_in_use():
    engine = make_engine(MemoryModel())
    engine.add_request("a", [1], ONE)
    with pytest.raises(RequestError, match="'a' is taken"):
        engine.add_request("a", [2], ONE)
    assert len(run(engine)) == 1
    engine.add_request("a", [2], ONE)  # free again


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"logit_bias": {64: 1.0, 3: 1.0}}, "logit_bias has token ids .*: 64. .* 0 to 63"),
        ({"allowed_token_ids": [1, 99, 70]}, "allowed_token_ids has token ids .*: 70, 99. "),
        ({"logprobs": 65}, r"logprobs is 65: the model has 64 tokens \(-1: all\)"),
        ({"prompt_logprobs": 100}, "prompt_logprobs is 100"),
        ({"bad_words": ["a"]}, "no tokenizer to find bad_words"),
    ],
)
def test_parameters_the_model_cannot_serve(params, message):
    assert re.search(message, refused(make_engine(MemoryModel()), [1], SamplingParams(**params)))


def test_bad_words_without_tokens():
    engine = make_engine(MemoryModel(), tokenizer=FakeTokenizer())
    message = refused(engine, [1], SamplingParams(bad_words=["  ", "a"]))
    assert "bad_words has '  ', which has no tokens" in message


def test_all_that_is_wrong_with_the_parameters_at_once():
    wrong = SamplingParams(stop_token_ids=[64], allowed_token_ids=[65], stop="x", logprobs=99)
    message = refused(make_engine(MemoryModel()), [1], wrong)
    assert len(message.splitlines()) == 4
