"""What a step is said to take, against what the allocator hands out while it runs."""

import itertools
from pathlib import Path

import pytest
import torch
from tiny_llama import save_llama

from assembler import LLM, SamplingParams
from assembler.engine import build
from assembler.engine.kv_cache import cache_budget
from assembler.engine.live_memory import LiveMemory
from assembler.engine.options import EngineOptions
from assembler.engine.scheduled_batch import most_logit_rows
from assembler.engine.step_memory import meta_step, step_memory
from assembler.errors import OptionError
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_splits import split_bytes
from assembler.kernels.paged_attention_tiling import Heads
from assembler.loading import load_model

TOKENS, LOGITS = 200, 20


def allocated_peak(run) -> int:
    """The most bytes that torch's CPU allocator had given out during `run()`."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [260, 4000])  # the fullest moment is in a layer, or the head
def test_a_step_takes_what_is_said(vocab_size: int, dtype: torch.dtype, tmp_path: Path):
    save_llama(tmp_path, vocab_size=vocab_size, intermediate_size=150)
    model = load_model(tmp_path, dtype=dtype)
    with torch.device("meta"):
        ids, ctx = meta_step(model, TOKENS, LOGITS)
    ids = torch.zeros_like(ids, device="cpu")
    real = {"positions": ids, "sequence_lengths": ids, "logit_rows": ids[:LOGITS]}
    ctx = type(ctx)(**{**vars(ctx), **real, "shared": {}})

    @torch.inference_mode()
    def run():
        model(ids, ctx).to(torch.float32, copy=True)

    run()  # what is made once is no matter of a step
    ctx.shared.clear()
    assert step_memory(model, TOKENS, LOGITS) == pytest.approx(allocated_peak(run), rel=0.05)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize("may_cut", [True, False])
def test_prompts_that_are_scored_fit_what_is_said(may_cut: bool, tmp_path: Path):
    save_llama(tmp_path, vocab_size=8000, max_position_embeddings=800)
    options = {"max_num_seqs": 2, "max_num_batched_tokens": 800}
    llm = LLM(tmp_path, enforce_eager=True, enable_chunked_prefill=may_cut, **options)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    prompts = [[*range(600)], [5, 6, 7]]
    rows = most_logit_rows(2, 800, may_cut)
    assert rows == (258 if may_cut else 800)
    taken = allocated_peak(lambda: llm.generate(prompts, params, use_tqdm=False))
    assert taken < step_memory(llm.model, 800, rows)
    assert most_logit_rows(4, 100, may_cut=True) == 100


def test_on_a_gpu_the_splits_of_contexts_are_counted(tmp_path: Path, monkeypatch):
    save_llama(tmp_path)
    model = load_model(tmp_path).to("meta")
    without = step_memory(model, 8, 8)
    gpu = GPUS["sm_90"]
    monkeypatch.setattr("assembler.engine.step_memory._gpu", lambda device: gpu)
    splits = split_bytes(Heads(2, 8, 8, itemsize=4, cache_itemsize=4), gpu)
    assert splits < step_memory(model, 8, 8) <= splits + without


def test_fewer_tokens_than_sequences_sample_once_each(tmp_path: Path):
    save_llama(tmp_path)
    model = load_model(tmp_path)
    assert step_memory(model, 8, 100) == step_memory(model, 8, 8) < step_memory(model, 9, 9)


def test_views_are_free_and_what_is_let_go_is_given_back():
    with torch.device("meta"):
        known = torch.empty(100)
        with LiveMemory([known]) as memory:
            made = known + 1
            view = made.view(10, 10)
            del made
            assert memory.now == 400
            known.add_(view.flatten())
            assert memory.now == memory.peak == 400
            del view
            assert (memory.now, memory.peak) == (0, 400)


def test_a_gpu_keeps_room_for_the_largest_step(monkeypatch, tmp_path: Path):
    """The device is a stand-in: only its memory is asked for."""
    monkeypatch.setattr(
        "assembler.engine.kv_cache.device_memory", lambda device: (1 << 20, 4 << 20)
    )
    gpu = torch.device("cuda")
    assert cache_budget(gpu, None, step_bytes=1000) == int(0.9 * (1 << 20)) - 1000
    assert cache_budget(gpu, 0.9, step_bytes=1000) == int(0.9 * (4 << 20)) - (3 << 20) - 1000
    with pytest.raises(OptionError, match=r"largest step takes 1 MiB: .* lower max_num_batch"):
        cache_budget(gpu, None, step_bytes=1 << 20)

    save_llama(tmp_path)
    model = load_model(tmp_path)
    page = 2 * 3 * 2 * 8 * 16 * 4  # keys and values, layers, heads of 8, tokens of a page, float32
    for num_tokens in (64, 512):
        options = EngineOptions(max_num_batched_tokens=num_tokens, max_num_seqs=64)
        pages = build._num_pages(model, options, 256, gpu, torch.float32, None, None)
        rows = most_logit_rows(64, num_tokens, may_cut=True)
        free = int(0.9 * (1 << 20)) - step_memory(model, num_tokens, rows)
        assert pages == free // page
