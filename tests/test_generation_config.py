"""What requests get that name no SamplingParams: the recommendations of generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import save_llama

from assembler import LLM, SamplingParams
from assembler.errors import CheckpointError, OptionError, RequestError, TokenizerError
from assembler.generation_config import recommended_params

FILE = "generation_config.json"


def write(folder: Path, **config: Any) -> Path:
    (folder / FILE).write_text(json.dumps(config))
    return folder


def test_without_the_file_the_defaults_are_those_of_sampling_params(tmp_path: Path):
    assert recommended_params(tmp_path) == SamplingParams()
    assert recommended_params(write(tmp_path, eos_token_id=[1, 2])) == SamplingParams()


def test_what_the_file_recommends(tmp_path: Path):
    """Qwen3's file, as it is published; `do_sample` changes nothing, as in vLLM."""
    write(
        tmp_path,
        bos_token_id=151643,
        do_sample=False,
        eos_token_id=[151645, 151643],
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        min_p=None,
        repetition_penalty=1.05,
        max_new_tokens=2048,
        transformers_version="4.51.0",
    )
    assert recommended_params(tmp_path) == SamplingParams(
        temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05, max_tokens=2048
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": -1, "top_p": "x"}, r"temperature=-1: .*\n.*top_p='x': "),
        ({"max_new_tokens": 0}, "max_tokens=0"),
    ],
)
def test_values_that_cannot_be(config: dict[str, Any], message: str, tmp_path: Path):
    write(tmp_path, **config)
    with pytest.raises(CheckpointError, match=rf"{FILE}: {message}") as error:
        recommended_params(tmp_path)
    assert "Pass SamplingParams of your own" in str(error.value)


def test_a_damaged_file(tmp_path: Path):
    (tmp_path / FILE).write_text("{")
    with pytest.raises(TokenizerError, match=f"{FILE}: not a JSON file"):
        recommended_params(tmp_path)


def test_llm_follows_the_file_unless_told_otherwise(tmp_path: Path):
    save_llama(tmp_path)
    write(tmp_path, temperature=0.0, max_new_tokens=100_000, repetition_penalty=1.3)
    llm = LLM(tmp_path, max_model_len=24)
    recommended = SamplingParams(temperature=0.0, max_tokens=100_000, repetition_penalty=1.3)
    assert llm.get_default_sampling_params() == recommended
    [output] = llm.generate("Hello", use_tqdm=False)
    told = SamplingParams(temperature=0.0, max_tokens=None, repetition_penalty=1.3)
    [same] = llm.generate("Hello", told, use_tqdm=False)
    [other] = llm.generate("Hello", SamplingParams(temperature=0.0, max_tokens=None), False)
    assert output.outputs == same.outputs != other.outputs
    assert len(output.outputs[0].token_ids) == 24 - 5  # cut to what fits
    *_, last = llm.stream("Hello")
    assert last.outputs == output.outputs
    changed = llm.get_default_sampling_params().with_(repetition_penalty=1.0)
    assert changed == SamplingParams(temperature=0.0, max_tokens=100_000)
    [longest] = llm.generate("Hello", changed, use_tqdm=False)  # still a recommendation
    assert len(longest.outputs[0].token_ids) == 24 - 5
    with pytest.raises(RequestError, match="max_tokens is 100"):
        llm.generate("Hello", changed.with_(max_tokens=100), use_tqdm=False)
    with pytest.raises(OptionError, match=r"with_\(max_tokens=100\)"):
        llm.get_default_sampling_params().max_tokens = 100
