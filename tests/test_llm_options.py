"""Every option of `LLM`: what it refuses, and that it reaches the part that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_llama import save_llama

from assembler import LLM, SamplingParams
from assembler.errors import OptionError
from assembler.llm_options import LLMOptions

FIELDS = LLMOptions.model_fields
# What is too little or too much; the numbers are all of those that options are.
OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "max_model_len": (0, -1),
    "max_num_seqs": (0, -5),
    "max_num_batched_tokens": (0, -1),
    "gpu_memory_utilization": (0.0, -0.5, 1.01, float("nan")),
    "kv_cache_memory_bytes": (0, -1),
    "page_size": (0, -16),
    "seed": (-1, 2**63),
    "max_logprobs": (-2,),
    "tensor_parallel_size": (0, -2),
}
NOT_NUMBERS = ("1", True, [1], {}, object())
# Paths and torch's own objects are taken by what they are called.
BY_NAME = ("conf", "device")


def kinds(name: str) -> set[type]:
    annotation = FIELDS[name].annotation
    return {kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)}


NUMBERS = [name for name in FIELDS if kinds(name) & {int, float}]
SWITCHES = [name for name in FIELDS if bool in kinds(name)]
OTHERS = [name for name in FIELDS if name not in (*NUMBERS, *SWITCHES, *BY_NAME)]


def refusal(**options: Any) -> str:
    with pytest.raises(OptionError) as error:
        LLMOptions(**options)
    return str(error.value)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_have_a_range_and_nothing_else_is_one(name: str):
    for value in (*OUT_OF_RANGE[name], *NOT_NUMBERS):
        assert refusal(**{name: value}).startswith(f"{name}="), value
    if float not in kinds(name):
        assert refusal(**{name: 1.5}).startswith(f"{name}=1.5")


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_true_or_false(name: str):
    nothing = () if type(None) in kinds(name) else (None,)
    for value in (0, 1, "yes", "true", [], *nothing):
        assert refusal(**{name: value}).startswith(f"{name}="), value


@pytest.mark.parametrize("name", OTHERS)
def test_words_and_lists_are_of_the_known_kind(name: str):
    for value in (5, 1.5, True, {}, object(), [5], [None]):
        assert refusal(**{name: value}).startswith(f"{name}"), value


@pytest.mark.parametrize("name", FIELDS)
def test_a_misspelt_name_is_told_the_right_one(name: str):
    wrong = name[:-2] + name[-1] + name[-2]  # the last two letters change places
    wrong = wrong if wrong != name else f"{name}x"
    assert f"unknown option '{wrong}'. Did you mean '{name}'" in refusal(**{wrong: 1})


def test_all_that_is_wrong_is_told_at_once():
    lines = refusal(page_size=0, seed="x", mmap="maybe", enforce_egaer=True).splitlines()
    assert len(lines) == 4
    assert "Did you mean 'enforce_eager'" in "".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def test_the_seed_is_that_of_requests_without_one(folder: Path):
    def drawn(seed: int | None) -> list[int]:
        llm = LLM(folder, seed=seed)
        params = SamplingParams(temperature=1.5, max_tokens=30, ignore_eos=True)
        return [o.outputs[0].token_ids for o in llm.generate([[1, 2], [1, 2]], params, False)]

    first, second = drawn(3)
    assert [first, second] == drawn(3) and first != second
    assert drawn(4) != [first, second]
    assert drawn(None) != drawn(None)


def test_a_share_of_the_memory_becomes_pages(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a machine of 10 MB, of which this process takes 4."""
    monkeypatch.setattr("assembler.engine.kv_cache.host_memory", lambda: 10_000_000)
    monkeypatch.setattr("assembler.engine.kv_cache.resident_bytes", lambda: 4_000_000)
    page = 3 * 2 * 2 * 8 * 16 * 4  # layers; keys, values; heads of 8; 16 tokens; float32
    for share, free in ((0.5, 1_000_000), (1.0, 6_000_000)):
        llm = LLM(folder, gpu_memory_utilization=share)
        assert llm.engine.scheduler.page_pool.num_pages == free // page
        (keys, values), *_ = llm.engine.model_runner.kv_caches
        assert len(keys) == len(values) == free // page
    with pytest.raises(OptionError, match=r"gpu_memory_utilization=0\.4 .* nothing is left"):
        LLM(folder, gpu_memory_utilization=0.4)


def test_steps_overlap_or_not(folder: Path):
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    found = []
    for overlap in (None, False, True):
        llm = LLM(folder, device="cpu", overlap_scheduling=overlap)
        llm.add_request([1, 2], params)
        (first,) = llm.step()
        assert (llm.engine._flight is not None) == (overlap is True)
        found.append(llm.generate([1, 2], params, use_tqdm=False)[0].outputs[0].token_ids)
        assert found[-1][:1] == first.outputs[0].token_ids
    assert found[0] == found[1] == found[2]


def test_prompts_are_cut_or_not(folder: Path):
    params = SamplingParams(temperature=0, max_tokens=1)
    for cut, steps in ((True, 4), (False, 2)):
        llm = LLM(
            folder,
            enable_chunked_prefill=cut,
            max_num_seqs=4,
            max_model_len=100,
            max_num_batched_tokens=100 if not cut else 40,
        )
        llm.generate([[1] * 80, [2] * 80], params, use_tqdm=False)
        assert llm.engine.stats.num_steps == steps
