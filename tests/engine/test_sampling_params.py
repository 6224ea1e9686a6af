import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from assembler.engine import foreign_options
from assembler.engine.options import EngineOptions
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import OptionError
from assembler.llm_options import LLMOptions


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
        {"repetition_penalty": 9e-4},
        {"repetition_penalty": float("inf")},
        {"n": 0},
        {"n": True},
        {"n": 16385},
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


def test_whole_numbers_of_other_libraries():
    params = SamplingParams(
        top_k=np.int64(5),
        seed=torch.tensor(7),
        max_tokens=np.uint8(9),
        stop_token_ids=[np.int32(3), torch.tensor(4)],
        logit_bias={np.int64(3): 1.0},
    )
    plain = SamplingParams(
        top_k=5, seed=7, max_tokens=9, stop_token_ids=[3, 4], logit_bias={3: 1.0}
    )
    assert params == plain and type(params.top_k) is int
    assert [*map(type, (*params.stop_token_ids, *params.logit_bias))] == [int] * 3
    assert EngineOptions(page_size=np.int64(8)).page_size == 8
    for wrong in (np.float32(2.5), np.array([1, 2]), torch.tensor(2.5), np.bool_(True)):
        with pytest.raises(OptionError, match="top_k="):
            SamplingParams(top_k=wrong)


def test_changed_ones_are_validated():
    params = SamplingParams(temperature=0.5, stop=["x"])
    changed = params.with_(max_tokens=100, stop=None)
    assert changed == SamplingParams(temperature=0.5, max_tokens=100)
    assert params == SamplingParams(temperature=0.5, stop=["x"])
    assert changed.model_fields_set == {"temperature", "max_tokens", "stop"}
    for change in (params.with_, lambda **update: params.model_copy(update=update)):
        assert change(top_k=3) == SamplingParams(temperature=0.5, stop=["x"], top_k=3)
        with pytest.raises(OptionError, match="top_p=2: "):
            change(top_p=2)
        with pytest.raises(OptionError, match=r"'max_token'\. Did you mean 'max_tokens'"):
            change(max_token=2)
        with pytest.raises(OptionError, match="n=2: greedy samples"):
            change(temperature=0, n=2)
    assert params.model_copy() == params


def test_a_recommendation_is_no_demand():
    recommended = SamplingParams(max_tokens=100, top_k=4).as_recommendation()
    assert recommended == SamplingParams(max_tokens=100, top_k=4)
    assert recommended.model_fields_set == {"top_k"}
    assert recommended.with_(top_k=5).model_fields_set == {"top_k"}
    assert recommended.with_(max_tokens=100).model_fields_set == {"top_k", "max_tokens"}


def test_fixed_and_hashable():
    params = SamplingParams(stop=["x"])
    with pytest.raises(OptionError, match=r"cannot be changed.* with_\(top_k=3\)"):
        params.top_k = 3
    assert params.top_k == 0
    assert hash(params) == hash(SamplingParams(stop="x"))
    biased = SamplingParams(logit_bias={1: 2.0, 3: 4.0})
    assert hash(biased) == hash(SamplingParams(logit_bias={3: 4.0, 1: 2.0})) != hash(params)


def test_engine_options_are_checked_alike():
    with pytest.raises(OptionError, match="Did you mean 'max_num_seqs'"):
        EngineOptions(max_num_seq=3)
    with pytest.raises(OptionError, match="page_size=0"):
        EngineOptions(page_size=0)


def test_names_of_other_systems_say_what_to_use():
    with pytest.raises(OptionError) as error:
        LLMOptions(block_size=16, trust_remote_code=True, kvcache_block_size=256)
    assert str(error.value).splitlines() == [
        "unknown option 'block_size': here it is page_size",
        "  unknown option 'trust_remote_code': no code of a checkpoint is ever run; leave it out",
        "  unknown option 'kvcache_block_size': here it is page_size",
    ]
    with pytest.raises(OptionError, match="'max_new_tokens': here it is max_tokens"):
        SamplingParams(max_new_tokens=5)


@pytest.mark.parametrize(
    ("table", "options"),
    [(foreign_options.ENGINE, LLMOptions), (foreign_options.REQUEST, SamplingParams)],
)
def test_what_is_to_be_used_instead_exists(table, options):
    assert not set(table) & set(options.model_fields)
    for name, instead in table.items():
        for wanted in re.findall(r"here it is (\w+)", instead):
            assert wanted in options.model_fields, name


def test_importing_the_params_does_not_import_torch():
    code = (
        "import sys; from assembler.engine.sampling_params import SamplingParams; "
        "from assembler.engine.outputs import RequestOutput; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
