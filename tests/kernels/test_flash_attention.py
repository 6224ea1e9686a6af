"""The flash-attn backend, on a stand-in for the package: values, and all that is refused."""

from __future__ import annotations

import sys
from dataclasses import replace

import fake_flash_attn
import pytest
import torch
from naive_attention import head_options, make_step

from assembler.errors import OptionError
from assembler.kernels import dispatch, flash_attention
from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.dispatch import attention_backend
from assembler.kernels.flash_attention import AttentionUse, FlashAttention, use_refusals

FITTING = AttentionUse(
    AttentionOptions(0.1), 128, 128, False, torch.bfloat16, torch.bfloat16, page_size=256
)


@pytest.fixture
def installed(monkeypatch):
    """The stand-in takes the package's place."""
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn)
    monkeypatch.setattr(flash_attention, "find_spec", lambda name: name)


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(flash_attention, "find_spec", lambda name: None)


STEPS = {
    "mixed": ([5, 1, 0, 3, 1], [5, 300, 7, 290, 1]),
    "decode": ([1, 1, 1], [1, 256, 515]),
    "whole prompts": ([9, 4], [9, 4]),
}
OPTIONS = {
    "plain": {},
    "window": {"window": 4},
    "softcap": {"softcap": 2.0},
    "window, softcap": {"window": 1, "softcap": 1.5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("lens", STEPS.values(), ids=STEPS)
def test_values(installed, lens, options):
    window = options.get("window")
    step = make_step(*lens, page_size=256, dtype=torch.float16, window=window)
    # Before a window stand tokens that were stored once: numbers, which the step has as NaN.
    caches = [cache.nan_to_num(0.0) for cache in (step.k_cache, step.v_cache)]
    wanted = AttentionOptions(scale=0.3, **options)
    got = FlashAttention().attend(step.q, *caches, step.batch, wanted)
    torch.testing.assert_close(got.double(), step.expected(wanted), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("lens", STEPS.values(), ids=STEPS)
def test_alibi(installed, lens):
    step = make_step(*lens, page_size=256, dtype=torch.float16)
    wanted = head_options(4, "alibi_slopes")
    got = FlashAttention().attend(step.q, step.k_cache, step.v_cache, step.batch, wanted)
    torch.testing.assert_close(got.double(), step.expected(wanted), atol=2e-3, rtol=2e-3)


def test_all_layers_share_the_prefix_sums_of_a_step(installed):
    step = make_step(*STEPS["mixed"], page_size=256, dtype=torch.float16)
    backend = FlashAttention()
    for _ in range(2):
        backend.attend(step.q, step.k_cache, step.v_cache, step.batch, AttentionOptions(1.0))
    assert step.batch.derived[FlashAttention].tolist() == [0, 5, 305, 312, 602, 603]


REFUSED = {
    "attention sinks": {"options": AttentionOptions(1.0, sinks=torch.zeros(2))},
    "chunk masks": {"options": AttentionOptions(1.0, chunk=8)},
    "ALiBi rounded": {
        "options": AttentionOptions(1.0, alibi_slopes=torch.ones(2), alibi_rounded=True)
    },
    "latent attention": {"latent": True},
    "values of 64 beside keys of 128": {"value_dim": 64},
    "head_dim 288: at most 256": {"head_dim": 288, "value_dim": 288},
    "head_dim 100: .*multiple of 8": {"head_dim": 100, "value_dim": 100},
    "dtype float32: float16 or bfloat16": {"dtype": torch.float32, "cache_dtype": torch.float32},
    "a cache of float8_e4m3fn: must be bfloat16": {"cache_dtype": torch.float8_e4m3fn},
    "page_size 16: must be a multiple of 256": {"page_size": 16},
}


@pytest.mark.parametrize(("reason", "changes"), REFUSED.items(), ids=REFUSED)
def test_what_is_refused_says_why(installed, reason, changes):
    assert use_refusals(FITTING) == []
    with pytest.raises(OptionError, match=rf"cannot run this:\n  {reason}.*\n.*attention=triton"):
        attention_backend("flash_attn", "cuda", [FITTING, replace(FITTING, **changes)])


def test_all_reasons_come_at_once(installed):
    use = replace(FITTING, page_size=16, dtype=torch.float32)
    with pytest.raises(OptionError, match=r"(?s)dtype float32.*page_size 16"):
        attention_backend("flash_attn", "cuda", [use, use])


@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(1.0, chunk=4),
        AttentionOptions(1.0, k_scale=2.0),
        AttentionOptions(1.0, value_dim=8),
        head_options(4, "sinks"),
    ],
)
def test_options_that_would_be_left_out_are_refused_at_the_call(installed, options):
    step = make_step([1], [3], page_size=256, dtype=torch.float16)
    with pytest.raises(OptionError, match="cannot run this"):
        FlashAttention().attend(step.q, step.k_cache, step.v_cache, step.batch, options)


def test_without_the_package(absent):
    with pytest.raises(OptionError, match=r"pip install model-assembler\[flash\]"):
        attention_backend("flash_attn", "cuda", [FITTING])
    with pytest.raises(OptionError, match="not installed"):
        FlashAttention()


def test_a_package_of_another_torch_or_age(installed, monkeypatch):
    monkeypatch.setattr(fake_flash_attn, "__version__", "2.5.9")
    with pytest.raises(OptionError, match=r"2\.5\.9 is too old"):
        attention_backend("flash_attn", "cuda")
    monkeypatch.delattr(fake_flash_attn, "flash_attn_with_kvcache")
    with pytest.raises(OptionError, match=r"cannot be used: .*flash_attn_with_kvcache"):
        attention_backend("flash_attn", "cuda")


def test_on_a_cpu(installed):
    with pytest.raises(OptionError, match="needs a CUDA or HIP device, not 'cpu'"):
        attention_backend("flash_attn", "cpu", [FITTING])


def test_auto_says_what_it_picked_and_why(installed, monkeypatch, caplog):
    caplog.set_level("INFO", "assembler")
    assert attention_backend("auto", "cpu").reason == "auto: 'cpu' is no CUDA or HIP device"
    assert "Triton computes everything" in attention_backend("auto", "cuda", [FITTING]).reason
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert attention_backend("auto", "cuda", [FITTING]).name == "flash_attn"
    small = attention_backend("auto", "cuda", [replace(FITTING, page_size=16)])
    assert small.name == "torch" and "page_size 16" in small.reason
    assert attention_backend("torch", "cuda").reason == "asked for"
    assert "attention backend: flash_attn (auto: triton: the package triton is not" in caplog.text


def test_graphs_may_hold_it_where_slots_are_read_on_the_device(installed, monkeypatch):
    assert FlashAttention().capturable
    monkeypatch.setattr(
        flash_attention, "find_spec", lambda name: None if name == "triton" else name
    )
    assert not FlashAttention().capturable
