"""The measurement of a decode step."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tiny_llama import save_llama

from assembler import LLM, SamplingParams
from assembler.kernels.cpu_library import cpu_library

PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("overhead")


def test_measuring_changes_no_token_and_parts_make_up_the_step(tmp_path, overhead, monkeypatch):
    if cpu_library() is None:
        pytest.skip("no C++ compiler: steps run in torch")
    save_llama(tmp_path)
    llm = LLM(tmp_path, enable_prefix_caching=False)
    before = llm.generate([[1, 2, 3]], PARAMS, use_tqdm=False)[0].outputs[0].token_ids
    kernels = overhead.Kernels()
    with monkeypatch.context() as patched:
        patched.setattr(overhead.cpu_step, "run", kernels.run)
        measured = llm.generate([[1, 2, 3]], PARAMS, use_tqdm=False)[0].outputs[0].token_ids
    assert measured == before
    assert 0 < kernels.needed < kernels.extra
    step, program, needed = overhead.measure(llm, steps=4)
    assert 0 < program < step
    assert 0 < needed < step


def test_a_model_that_runs_in_torch_is_refused(tmp_path, overhead):
    save_llama(tmp_path)
    llm = LLM(tmp_path, enforce_eager=True)
    with pytest.raises(ValueError, match="run in torch"):
        overhead.measure(llm, steps=1)
