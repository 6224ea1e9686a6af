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
        "seed": None,
        "max_tokens": 16,
        "stop": (),
        "stop_token_ids": (),
        "ignore_eos": False,
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


def test_greedy_is_temperature_zero():
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(temperature=1e-9).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy


def test_frozen_and_hashable():
    params = SamplingParams(stop=["x"])
    with pytest.raises(ValidationError):
        params.top_k = 3
    assert hash(params) == hash(SamplingParams(stop="x"))


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
