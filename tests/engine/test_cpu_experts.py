"""Experts and latents in the compiled step: alike in any company, and torch where it has to be."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import named
from tiny_checkpoints import make_checkpoint, token_ids
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.cpu_step import CPUStep, cpu_step
from assembler.engine.lowering import NotLowered, lower
from assembler.kernels.cpu_library import cpu_library
from assembler.kernels.cpu_program import Instruction, Opcode, Step
from assembler.loading import load_model
from assembler.verifying.paged_texts import PagedTexts

MAX_ROWS = 64
LENGTH = 23
ROUTERS = (
    "qwen2_moe-dense-between-windows",
    "phimoe-wide-jitter",
    "gpt_oss-windows",
    "llama4_text-chunks-scaled",
    "deepseek_v3-groups-yarn",
)

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder: Path = tmp_path_factory.mktemp(request.param)
    make_checkpoint(named(request.param), folder)
    return load_model(folder)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def _paged(model: nn.Module, dtype: torch.dtype = torch.float32) -> PagedTexts:
    """Texts that the compiled step reads."""
    paged = PagedTexts(model, token_ids(), "torch")
    paged.kv_caches = [
        (keys.to(dtype), None if values is None else values.to(dtype))
        for keys, values in paged.kv_caches
    ]
    paged.model = CPUStep(lower(model, paged.kv_caches, MAX_ROWS, dtype))
    return paged


def _first_text(paged: PagedTexts, steps: list[tuple[int, int]]) -> torch.Tensor:
    """The first text's logits [LENGTH, vocab], read in steps that take so much of either text."""
    return torch.cat([paged.advance(counts, [LENGTH] * 2)[0].clone() for counts in steps])


@pytest.mark.parametrize("model", ROUTERS, indirect=True)
def test_a_token_gets_the_same_bits_in_any_company(model: nn.Module):
    bfloat16 = model.bfloat16()
    try:
        alone = _first_text(_paged(bfloat16, torch.bfloat16), [(5, 0), (1, 0), (16, 0), (1, 0)])
        steps = [(9, 4), (1, 1), (3, 1), (10, 17)]
        beside = _first_text(_paged(bfloat16, torch.bfloat16), steps)
    finally:
        model.float()
    assert torch.equal(alone, beside)


@pytest.mark.parametrize("model", ["deepseek_v3-groups-yarn"], indirect=True)
def test_threads_change_nothing(model: nn.Module, request: pytest.FixtureRequest):
    steps = [(9, 4), (14, 19)]
    expected = _first_text(_paged(model), steps)
    request.getfixturevalue("three_threads")
    for _ in range(3):
        assert torch.equal(_first_text(_paged(model), steps), expected)


@pytest.mark.parametrize("model", ["qwen2_moe-dense-between-windows"], indirect=True)
def test_numbers_that_are_none_stay_with_their_text(model: nn.Module):
    embedding = model.embed.weight
    paged, steps = _paged(model), [(9, 4), (14, 19)]
    expected = _first_text(paged, steps)
    spoilt = int(paged.texts[1, 2])
    assert spoilt not in paged.texts[0]
    before = embedding[spoilt].clone()
    try:
        embedding.data[spoilt] = float("nan")
        paged = _paged(model)
        found = [[rows.clone() for rows in paged.advance(n, [LENGTH] * 2)] for n in steps]
    finally:
        embedding.data[spoilt] = before
    assert torch.equal(torch.cat([rows[0] for rows in found]), expected)
    assert found[0][1][2:].isnan().all()


@pytest.mark.parametrize("model", ["phimoe-wide-jitter"], indirect=True)
def test_the_last_experts_get_the_wanted_rows_only(model: nn.Module):
    paged = _paged(model)
    step = paged.model
    combined = [one for one in step.program.instructions if one.opcode == Opcode.COMBINE]
    assert [one.sampled for one in combined] == [0] * (len(combined) - 1) + [1]

    def some(ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        every, wanted = step(ids, ctx).clone(), torch.tensor([8, 2, 12])
        assert torch.equal(step(ids, replace(ctx, logit_rows=wanted)), every[wanted])
        return every

    paged.model = some
    paged.advance((9, 4), [LENGTH] * 2)


@pytest.mark.parametrize("model", ["qwen2_moe-dense-between-windows"], indirect=True)
def test_what_has_no_instruction_runs_in_torch(model: nn.Module, caplog: pytest.LogCaptureFixture):
    steps = [(9, 4), (14, 19)]
    expected = _first_text(_paged(model), steps)
    seen: list[int] = []
    mixture = next(m for m in model.modules() if type(m).__name__ == "MoE")
    hook = mixture.register_forward_hook(lambda *call: seen.append(len(call[2])))
    try:
        paged = PagedTexts(model, token_ids(), "torch")
        with caplog.at_level("INFO", "assembler"):
            paged.model = cpu_step(model, paged.kv_caches, torch.device("cpu"), torch.float32)
        found = _first_text(paged, steps)
    finally:
        hook.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)
    assert seen == [13, 33]
    assert "torch runs MoE within the CPU kernels' steps, 1 times: hooks" in caplog.text


@pytest.mark.parametrize("model", ["qwen2_moe-dense-between-windows"], indirect=True)
@pytest.mark.parametrize(
    "place", ["", "layers", "layers.1", "layers.1.attn.qkv", "layers.1.moe.router"]
)
def test_hooks_within_blocks_and_around_them_leave_all_to_torch(
    place: str, model: nn.Module, caplog: pytest.LogCaptureFixture
):
    hook = model.get_submodule(place).register_forward_hook(lambda *call: None)
    try:
        paged = PagedTexts(model, token_ids(), "torch")
        with caplog.at_level("INFO", "assembler"):
            step = cpu_step(model, paged.kv_caches, torch.device("cpu"), torch.float32)
    finally:
        hook.remove()
    assert step is None
    assert f"no CPU kernel for {place or 'the model'}, which has hooks" in caplog.text


@pytest.mark.parametrize("model", ["gpt2-published-names"], indirect=True)
def test_positions_that_a_table_lacks_are_refused(model: nn.Module):
    paged = _paged(model)
    known = paged.model.program.num_positions
    assert known == model.positions.weight.shape[0]
    paged.model.program.num_positions = 4
    with pytest.raises(IndexError, match="position 4 of a model that knows 4"):
        paged.advance((5, 2), [LENGTH] * 2)


@pytest.mark.parametrize("model", ["qwen2_moe-dense-between-windows"], indirect=True)
def test_a_head_in_other_numbers_leaves_the_whole_model_to_torch(
    model: nn.Module, caplog: pytest.LogCaptureFixture
):
    paged = PagedTexts(model, token_ids(), "torch")
    with pytest.raises(NotLowered, match="a weight"):
        lower(model, paged.kv_caches, MAX_ROWS, torch.bfloat16)
    with caplog.at_level("INFO", "assembler"):
        assert cpu_step(model, paged.kv_caches, torch.device("cpu"), torch.bfloat16) is None
    assert "steps run in torch" in caplog.text


def test_instructions_are_alike_on_both_sides():
    library = cpu_library()
    for name, mirrored in (("instruction", Instruction), ("step", Step)):
        function = getattr(library, f"size_of_{name}")
        function.restype = ctypes.c_int64
        assert function() == ctypes.sizeof(mirrored)
    header = Path(__file__).parents[2] / "kernels" / "cpu" / "instructions.h"
    listed = header.read_text().partition("enum Opcode {")[2].partition("}")[0]
    assert [name.strip() for name in listed.split(",")] == [opcode.name for opcode in Opcode]
