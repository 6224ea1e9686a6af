"""A compiled step fed with plain numbers, its tables, and the threads that share its work."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import nn

from assembler import LLM, SamplingParams
from assembler.blocks.context import ForwardContext
from assembler.engine.cpu_step import CPUStep
from assembler.engine.kv_cache import cache_specs
from assembler.engine.lowering import lower
from assembler.engine.page_table import PageTable
from assembler.engine.step_inputs import StepInputs
from assembler.engine.step_tables import StepTables
from assembler.kernels.cpu_library import cpu_library
from assembler.loading import load_model
from assembler.verifying.tiny import write_tiny

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler")

ROPES = {
    "linear": "{type: linear, theta: 10000.0, factor: 2.0}",
    "dynamic": "{type: dynamic, theta: 10000.0, factor: 2.0, max_position_embeddings: 64}",
}


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    write_tiny(path, model_type=request.param)
    return path


def numbers_at(address: int, shape: tuple[int, int]) -> torch.Tensor:
    """The float32 numbers that stand there."""
    whole = (ctypes.c_float * (shape[0] * shape[1])).from_address(address)
    return torch.tensor(list(whole)).view(shape)


def program_of(model: nn.Module):
    """A lowered model with caches of two pages."""
    caches = [
        tuple(torch.zeros(2, 16, spec.num_kv_heads, spec.head_dim) for _ in range(2))
        for spec in cache_specs(model)
    ]
    return lower(model, caches, 64, torch.float32)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_tables_by_position_grow_and_hold_what_a_pass_makes(folder: Path):
    model = load_model(folder)
    tables, rope = StepTables(program_of(model)), model.layers[0].attn.rope
    assert not tables.need_context
    first = tables.addresses(5)
    assert tables.addresses(1024) is first  # no longer text has come
    for length in (1025, 5000):
        cos, sin = rope(ForwardContext.dense(length), torch.float32)
        found = tables.addresses(length)
        for address, expected in zip(found, (cos, sin), strict=True):
            assert torch.equal(numbers_at(address, (length, rope.dim)), expected.flatten(1))


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize("rope", ROPES)
def test_rotations_that_depend_on_the_length_are_made_for_each_step(folder: Path, rope: str):
    model = load_model(folder, overrides=[f"conf.layers.blocks.attn.rope={ROPES[rope]}"])
    program = program_of(model)
    assert StepTables(program).need_context == (rope == "dynamic")
    assert CPUStep(program).takes_numbers(step_inputs()) == (rope == "linear")


def step_inputs() -> StepInputs:
    """A chunk of three tokens and a decode; only the last token of each has logits."""
    return StepInputs(
        input_ids=[5, 6, 7, 8],
        positions=[0, 1, 2, 0],
        sequence_lengths=[3, 3, 3, 1],
        slot_mapping=[0, 1, 2, 16],
        cu_seqlens_q=[0, 3, 4],
        context_lens=[3, 1],
        page_lists=[[0], [1]],
        logit_rows=[2, 3],
        max_seqlen_q=3,
    )


def test_what_sequences_have_for_each_token():
    assert step_inputs().of_each_token([4, 9]) == [4, 4, 4, 9]


def test_kept_pages_are_found_by_address():
    table, first, second = PageTable(), [3, 1], [5]
    for lists in ([first, second], [second], [second, first, [7, 8, 9, 4, 2]]):
        table.update(lists)
        rows = [
            (ctypes.c_int32 * len(pages)).from_address(table.address + 4 * table.width * number)
            for number, pages in zip(table.numbers, lists, strict=True)
        ]
        assert [list(row) for row in rows] == lists


@pytest.mark.parametrize("folder", ["llama", "gemma2"], indirect=True)
@pytest.mark.parametrize("threads", [2, 7])
def test_texts_do_not_depend_on_the_threads(folder: Path, threads: int):
    """More of them than processors: some come late, and others do their share."""
    prompts = [[7 + i] * (3 + 5 * i) for i in range(9)]
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            llm = LLM(folder, max_model_len=128, dtype="bfloat16")
            assert llm.engine.model_runner.compiled_step is not None
            outputs = llm.generate(prompts, params, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("folder", ["llama", "gpt2", "llama4_text", "mixtral"], indirect=True)
def test_the_engine_gets_the_logits_of_the_module(folder: Path):
    """Chunks of prompts, decodes and scored prompts in one step; Llama 4 has one expert a token."""
    llm = LLM(folder, max_num_batched_tokens=24, max_num_seqs=8, page_size=4)
    runner = llm.engine.model_runner
    step, run, found = runner.compiled_step, runner.run, []

    def compared(inputs: StepInputs, late: None = None) -> torch.Tensor:
        assert late is None and step.takes_numbers(inputs)
        logits = run(inputs).clone()
        with torch.inference_mode():
            input_ids, ctx = runner.model_inputs(inputs)
            assert torch.equal(step(input_ids, ctx), logits)
            torch.testing.assert_close(logits, runner.model(input_ids, ctx), rtol=0, atol=3e-5)
        found.append((len(inputs.input_ids), len(logits)))
        return logits

    runner.run = compared
    generator = torch.Generator().manual_seed(3)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    scored = params.with_(prompt_logprobs=1)
    for i, length in enumerate((3, 31, 7, 1, 12, 20)):
        prompt = torch.randint(1, llm.spec.vocab_size - 6, (length,), generator=generator)
        llm.add_request(prompt.tolist(), scored if i % 3 == 0 else params)
    while not llm.is_finished():
        llm.step()
    assert any(1 < logits < tokens for tokens, logits in found)
    assert any(logits == tokens for tokens, logits in found)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_memory_that_is_refused_leaves_a_step_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    step = CPUStep(program_of(load_model(folder)))
    before = step._step(2, None)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", _refuse)
        with pytest.raises(MemoryError):
            step._step(50, None)
        patch.setattr(torch, "get_num_threads", lambda: 90)
        with pytest.raises(MemoryError):
            step._step(2, None)
    after = step._step(2, None)
    assert (after.logits, after.scratch) == (before.logits, before.scratch)
    assert after.logits == step._logits.data_ptr() and len(step._logits) == 2
    tables = step._tables
    first = tables.addresses(5)
    monkeypatch.setattr(torch, "cat", _refuse)
    with pytest.raises(MemoryError):
        tables.addresses(5000)
    assert tables.addresses(5) is first
    with pytest.raises(MemoryError):
        tables.addresses(5000)


def _refuse(*args: object, **kwargs: object) -> None:
    raise MemoryError
