"""The kernels of a step: all of it is in them, each once, and measuring changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_llama import save_llama

from assembler import LLM, SamplingParams
from assembler.benching.kernel_times import step_kernels
from assembler.benching.program_times import TimedStep
from assembler.engine.cpu_step import cpu_step
from assembler.kernels.cpu_library import cpu_library

compiled = pytest.mark.skipif(cpu_library() is None, reason="no C++ compiler: steps run in torch")


@pytest.fixture
def llm(tmp_path: Path) -> LLM:
    save_llama(tmp_path)
    return LLM(tmp_path, enable_prefix_caching=False)


def products(llm: LLM, rows: int) -> int:
    """FLOP of all linear layers; the last layer keeps the row that is sampled from, but for qkv."""
    linear = torch.nn.Linear
    sizes = {n: m.weight.numel() for n, m in llm.model.named_modules() if isinstance(m, linear)}
    once = sum(n for name, n in sizes.items() if ".2." in f".{name}." and "qkv" not in name)
    return 2 * (rows * (sum(sizes.values()) - once) + once + llm.model.lm_head.weight.numel())


@compiled
def test_pieces_of_a_program_make_up_the_step(llm: LLM):
    for step, rows in zip(step_kernels(llm, 24, rounds=2), (24, 1), strict=True):
        assert step.seconds > 0 and all(kernel.seconds > 0 for kernel in step.kernels)
        assert sorted(step.kernels, key=lambda kernel: -kernel.seconds) == [*step.kernels]
        kernels = {(kernel.name, kernel.shape): kernel for kernel in step.kernels}
        assert kernels["linear", "32 -> 48"].calls == 3  # gate and up of each layer
        flops = sum(kernel.cost.flops for kernel in step.kernels if kernel.name == "linear")
        assert flops == products(llm, rows)
        attention = kernels["attend", "4/2 heads of 8"]
        pairs = 2 * 24 * 25 // 2 + 24 if rows == 24 else 3 * 25  # of queries and keys
        assert attention.calls == 3 and attention.cost.flops == 2 * pairs * 4 * (8 + 8)
        calls = llm.engine.model_runner.compiled_step.program.instructions
        assert sum(kernel.calls for kernel in step.kernels) <= len(calls)


@compiled
def test_measuring_pieces_changes_no_token(llm: LLM):
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (before,) = llm.generate([[1, 2, 3]], params, use_tqdm=False)
    runner = llm.engine.model_runner
    runner._small_step = timed = TimedStep(runner.compiled_step.program)
    (after,) = llm.generate([[1, 2, 3]], params, use_tqdm=False)
    assert after.outputs[0].token_ids == before.outputs[0].token_ids
    assert len(timed.pieces) == len(timed.seconds) > 3 * 5


@compiled
def test_what_torch_does_between_is_a_row_without_a_cost(llm: LLM):
    llm.model.layers[0].mlp.register_forward_hook(lambda *args: None)
    runner = llm.engine.model_runner
    settings = llm.model, runner.kv_caches, torch.device("cpu"), torch.float32
    runner._small_step = cpu_step(*settings)  # hooks count when a model is lowered
    for step in step_kernels(llm, 10, rounds=1):
        (torch_row,) = (kernel for kernel in step.kernels if kernel.name == "GatedMLP (torch)")
        assert torch_row.calls == 1 and torch_row.cost is None
        assert torch_row.to_json()["GB_per_s"] is None


def test_steps_that_torch_runs_are_profiled(tmp_path: Path):
    save_llama(tmp_path)
    llm = LLM(tmp_path, enable_prefix_caching=False, enforce_eager=True)
    assert llm.engine.model_runner.compiled_step is None
    prefill, decode = step_kernels(llm, 24, rounds=1)
    for step, rows in ((prefill, 24), (decode, 1)):
        kernels = {(kernel.name, kernel.shape): kernel for kernel in step.kernels}
        up = kernels["aten::mm", f"[{rows},32] [32,48]"]
        assert (up.calls, up.cost.flops) == (3, 3 * 2 * rows * 32 * 48)
    assert llm.is_finished()


def test_a_cache_that_is_too_short_has_no_kernels(tmp_path: Path):
    save_llama(tmp_path)
    assert step_kernels(LLM(tmp_path, max_model_len=8), 100, rounds=5) == []
    prefill, decode = step_kernels(LLM(tmp_path, max_model_len=20), 100, rounds=5)
    assert (prefill.name, decode.name) == ("prefill of 12", "decode, context 13")
