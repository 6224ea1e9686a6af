import subprocess
import sys

import pytest
from pydantic import ValidationError

from assembler.engine.options import EngineOptions
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import OptionError


def test_defaults_are_those_of_vllm():
    params = SamplingParams()
    assert params.model_dump() == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "n": 1,
        "seed": None,
        "max_tokens": 16,
        "min_tokens": 0,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
        "bad_words": (),
        "logit_bias": None,
        "allowed_token_ids": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "skip_special_tokens": True,
        "include_stop_str_in_output": False,
    }


def test_one_error_lists_every_finding_with_the_nearest_name():
    with pytest.raises(OptionError) as error:
        SamplingParams(temprature=0.5, top_p=1.5, max_tokens=0, min_p="a")
    message = str(error.value)
    assert "unknown option 'temprature'. Did you mean 'temperature'?" in message
    assert "top_p=1.5" in message and "less than or equal to 1" in message
    assert "max_tokens=0" in message
    assert "min_p='a'" in message


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_k": -2},
        {"top_k": True},
        {"top_k": 3.5},
        {"min_p": 1.1},
        {"seed": -2},
        {"seed": 2**63},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": 5},
        {"stop": [5]},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": 3},
        {"ignore_eos": "yes"},
        {"presence_penalty": 2.1},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": -2.1},
        {"frequency_penalty": "1"},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"n": 0},
        {"n": True},
        {"min_tokens": -1},
        {"min_tokens": 17},  # more than max_tokens, which is 16
        {"bad_words": [""]},
        {"bad_words": [3]},
        {"logit_bias": [1, 2]},
        {"logit_bias": {"a": 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: 100.5}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": {1: None}},
        {"allowed_token_ids": []},
        {"allowed_token_ids": [-1]},
        {"allowed_token_ids": 4},
        {"logprobs": -2},
        {"logprobs": True},
        {"prompt_logprobs": 1.5},
        {"skip_special_tokens": 1},
        {"include_stop_str_in_output": None},
    ],
)
def test_wrong_values_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(OptionError, match=name):
        SamplingParams(**wrong)


def test_forms_of_the_same_value():
    assert SamplingParams(stop="x").stop == SamplingParams(stop=["x"]).stop == ("x",)
    assert SamplingParams(stop=None, stop_token_ids=None) == SamplingParams()
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)
    assert SamplingParams(temperature=0).temperature == 0.0
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(top_k=-1).top_k == -1
    assert SamplingParams(bad_words="x").bad_words == SamplingParams(bad_words=["x"]).bad_words
    assert SamplingParams(allowed_token_ids=[2, 1]).allowed_token_ids == (2, 1)
    assert SamplingParams(logit_bias={"7": 1, 8: -2.5}).logit_bias == {7: 1.0, 8: -2.5}
    assert SamplingParams(logprobs=-1, prompt_logprobs=0).logprobs == -1


def test_ranges_are_named():
    with pytest.raises(OptionError) as error:
        SamplingParams(presence_penalty=3, logit_bias={4: -200.0}, min_tokens=20, n=-1)
    assert str(error.value).splitlines() == [
        "presence_penalty=3: input should be less than or equal to 2",
        "  n=-1: input should be greater than 0",
        "  min_tokens=20: it must not be more than max_tokens, which is 16",
        "  logit_bias[4]=-200.0: input should be greater than or equal to -100",
    ]


def test_greedy_samples_are_not_several():
    with pytest.raises(OptionError, match="n=2: greedy samples are all the same"):
        SamplingParams(temperature=0, n=2)
    assert SamplingParams(temperature=0.1, n=2).n == 2


def test_greedy_is_temperature_zero():
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(temperature=1e-9).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy


def test_frozen_and_hashable():
    params = SamplingParams(stop=["x"])
    with pytest.raises(ValidationError):
        params.top_k = 3
    assert hash(params) == hash(SamplingParams(stop="x"))
    biased = SamplingParams(logit_bias={1: 2.0, 3: 4.0})
    assert hash(biased) == hash(SamplingParams(logit_bias={3: 4.0, 1: 2.0})) != hash(params)


def test_engine_options_are_checked_alike():
    with pytest.raises(OptionError, match="Did you mean 'max_num_seqs'"):
        EngineOptions(max_num_seq=3)
    with pytest.raises(OptionError, match="page_size=0"):
        EngineOptions(page_size=0)


def test_importing_the_params_does_not_import_torch():
    code = (
        "import sys; from assembler.engine.sampling_params import SamplingParams; "
        "from assembler.engine.outputs import RequestOutput; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
