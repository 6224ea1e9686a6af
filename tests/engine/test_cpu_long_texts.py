"""Texts over several blocks of keys and tiles of queries: exact, and alike however they are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from assembler.engine.cpu_step import CPUStep
from assembler.engine.lowering import lower
from assembler.kernels.cpu_library import cpu_library
from assembler.kernels.cpu_program import Opcode
from assembler.loading import load_model
from assembler.verifying.paged_texts import PagedTexts
from assembler.verifying.tiny import write_tiny

LENGTH = 150  # of blocks of 64 keys and tiles of 16 queries
MAX_ROWS = 2 * LENGTH
WHOLE = ((LENGTH, LENGTH),)
CUT = ((5, 0), (1, 130), (58, 1), (1, 1), (64, 18), (21, 0))  # tokens of either text a step takes
ALONE = ((70, 0), (1, 0), (79, 0))

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_oss"])  # windows, soft-cap, sinks
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder: Path = tmp_path_factory.mktemp(request.param)
    write_tiny(folder, model_type=request.param)
    return load_model(folder)


def paged_texts(model: nn.Module, dtype: torch.dtype) -> PagedTexts:
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(1, model.spec.vocab_size - 6, (2, LENGTH), generator=generator)
    paged = PagedTexts(model, texts, "torch")
    paged.kv_caches = [tuple(cache.to(dtype) for cache in pair) for pair in paged.kv_caches]
    return paged


def first_text(paged: PagedTexts, chunks: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """The logits [LENGTH, vocab] of the first text, read in these steps."""
    rows = [paged.advance(chunk, [LENGTH] * 2)[0].clone() for chunk in chunks]
    return torch.cat(rows).float()


def compiled(model: nn.Module, dtype: torch.dtype) -> PagedTexts:
    paged = paged_texts(model, dtype)
    paged.model = CPUStep(lower(model, paged.kv_caches, MAX_ROWS, dtype))
    return paged


def test_logits_are_those_of_the_module(model: nn.Module):
    expected = first_text(paged_texts(model, torch.float32), WHOLE)
    for chunks in (WHOLE, CUT):
        found = first_text(compiled(model, torch.float32), chunks)
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_are_the_same_whole_or_cut_and_alone_or_not(
    model: nn.Module, dtype: torch.dtype, threads: int
):
    model.to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole, cut, alone = (
            first_text(compiled(model, dtype), chunks) for chunks in (WHOLE, CUT, ALONE)
        )
    finally:
        torch.set_num_threads(before)
        model.float()
    assert torch.equal(cut, whole)
    assert torch.equal(alone, whole)


def test_rows_without_wanted_logits_end_with_the_last_store(model: nn.Module):
    caches = paged_texts(model, torch.float32).kv_caches
    code = lower(model, caches, MAX_ROWS, torch.float32).instructions
    stores = [number for number, one in enumerate(code) if one.opcode == Opcode.STORE]
    after = code[stores[-1] + 1 :]
    assert all(one.sampled for one in after)
    gathers = [one for one in after if one.opcode == Opcode.ROWS]
    assert len(gathers) == 2  # the residual stream, and the queries
