"""A KV cache of 8 bits: a quarter of float32's memory, scores close to those of a full one."""

from __future__ import annotations

import shutil

import pytest
import torch
from cases import named
from tiny_checkpoints import make_checkpoint
from tiny_llama import SIZES, change_tensors, save_llama

from assembler import LLM, SamplingParams
from assembler.errors import OptionError
from assembler.kernels import fused
from assembler.kernels.store_kv_torch import quantise
from assembler.loading import assemble, load_weights

PROMPT = list(range(3, 60))
SCORED = SamplingParams(temperature=0.0, max_tokens=1, logprobs=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def cache_of(llm):
    return llm.engine.model_runner.kv_caches


def first_scores(llm):
    [output] = llm.generate([PROMPT], SCORED, use_tqdm=False)
    return {token: score.logprob for token, score in output.outputs[0].logprobs[0].items()}


@pytest.mark.parametrize("attention", ["torch", "triton"])
def test_scores_are_close_to_those_of_a_full_cache(folder, attention):
    full = first_scores(LLM(folder, attention=attention))
    eight = LLM(folder, attention=attention, kv_cache_dtype="fp8")
    assert {cache.dtype for pair in cache_of(eight) for cache in pair} == {torch.float8_e4m3fn}
    got = first_scores(eight)
    both = full.keys() & got.keys()
    differences = [abs(full[token] - got[token]) for token in both]
    assert len(both) >= 2 and 0 < max(differences) < 0.2


def test_four_times_the_pages_fit(folder):
    pages = [
        LLM(
            folder, kv_cache_memory_bytes=1 << 20, max_num_seqs=10_000, kv_cache_dtype=dtype
        ).engine.model_runner.num_pages
        for dtype in ("auto", "fp8")
    ]
    assert pages[1] // 4 == pages[0]


def test_other_names_are_refused(folder):
    with pytest.raises(OptionError, match=r"kv_cache_dtype='int8'.*'auto' or 'fp8'"):
        LLM(folder, kv_cache_dtype="int8")


def with_scales(folder, to):
    """The same model with scales that keep its keys and values within 448: (k, v) of each layer."""
    scales = [(0.02 + 0.003 * n, 0.01 + 0.002 * n) for n in range(SIZES["num_hidden_layers"])]
    shutil.copytree(folder, to)
    at = "model.layers.{}.self_attn.{}_scale".format
    disk = {at(n, "kv"[j]): torch.tensor(pair[j]) for n, pair in enumerate(scales) for j in (0, 1)}
    change_tensors(to, lambda weights: weights.update(disk))
    return [tuple(torch.tensor(pair).tolist()) for pair in scales]


def stored_in_8_bits(llm, scales):
    """A full cache that is given what one of 8 bits gives back: divided, rounded, multiplied."""
    backend, caches = llm.engine.model_runner.attention_backend, cache_of(llm)
    store = backend.store_kv

    def rounded(k, v, k_cache, v_cache, slots, k_scale, v_scale):
        assert (k_scale, v_scale) == (1, 1)
        [layer] = [n for n, pair in enumerate(caches) if pair[0] is k_cache]
        pairs = zip((k, v), scales[layer], strict=True)
        store(*(quantise(x, s).float() * s for x, s in pairs), k_cache, v_cache, slots)

    backend.store_kv = rounded
    return llm


@pytest.mark.parametrize(
    ("attention", "fuses"),
    [
        ("torch", "never"),
        pytest.param("triton", "never", marks=pytest.mark.slow),
        pytest.param("torch", "always", marks=pytest.mark.slow),
    ],
)
def test_scales_of_the_checkpoint_divide_and_multiply(
    folder, tmp_path, attention, fuses, caplog, monkeypatch
):
    scales = with_scales(folder, tmp_path / "scaled")
    want, reference = (LLM(folder, attention="torch", enforce_eager=True) for _ in range(2))
    want, reference = first_scores(want), first_scores(stored_in_8_bits(reference, scales))
    with caplog.at_level("INFO"):
        eight = LLM(tmp_path / "scaled", attention=attention, kv_cache_dtype="fp8")
    monkeypatch.setattr(fused, "fused_choice", lambda: fuses)
    got = first_scores(eight)
    assert got == pytest.approx(reference, abs=2e-6)
    assert 0 < max(abs(want[token] - got[token]) for token in want.keys() & got.keys()) < 0.25
    assert caplog.text.count("6 scales of the checkpoint") == 1


def test_the_log_says_once_that_there_are_no_scales(folder, caplog):
    with caplog.at_level("INFO"):
        LLM(folder, kv_cache_dtype="fp8")
    assert caplog.text.count("no scales") == 1


def test_latent_attention_has_one_scale_for_keys_and_values(tmp_path):
    make_checkpoint(named("youtu-tied"), tmp_path)
    at = "model.layers.{}.self_attn.".format
    disk = {at(n) + f"{kind}_scale": torch.tensor(0.25 + n) for n in range(9) for kind in "kv"}
    layers = len(assemble(tmp_path).model.layers)
    disk = {name: value for name, value in disk.items() if int(name.split(".")[2]) < layers}
    change_tensors(tmp_path, lambda weights: weights.update(disk))
    found = assemble(tmp_path, fp8_cache=True)
    assert not found.plan.findings and len(found.plan.cache_scales) == layers
    assert {item.reason.partition(";")[0] for item in found.plan.ignored} == {
        "a scale of cached values"
    }
    assert load_weights(found).layers[1].attn.k_scale == 1.25
