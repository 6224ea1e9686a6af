"""Steps on the CPU kernels give what transformers gives, and what the torch module gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.cpu_step import CPUStep, cpu_step
from assembler.engine.lowering import lower
from assembler.kernels.cpu_library import cpu_library
from assembler.loading import load_model
from assembler.verifying.paged_texts import PagedTexts
from assembler.verifying.reference import Reference
from assembler.verifying.tiny import write_tiny

TOLERANCE = 3e-5
MAX_ROWS = 64
LENGTH = 23
CHUNKS = ((9, 4), (1, 1), (3, 1), (10, 17))  # tokens of either text a step takes
LOWERED = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "granite", "olmo2", "phi")

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler")


@dataclass(frozen=True)
class Tiny:
    """A tiny model as transformers and as we have it."""

    reference: Reference
    model: nn.Module


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder: Path = tmp_path_factory.mktemp(request.param)
    return Tiny(write_tiny(folder, model_type=request.param), load_model(folder))


def texts_of(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, model.spec.vocab_size - 6, (2, LENGTH), generator=generator)


def program_of(paged: PagedTexts, dtype: torch.dtype = torch.float32) -> CPUStep:
    return CPUStep(lower(paged.model, paged.kv_caches, MAX_ROWS, dtype))


def read(paged: PagedTexts) -> torch.Tensor:
    """The logits of both texts [2, LENGTH, vocab], read in steps of both at once."""
    parts = [[rows.clone() for rows in paged.advance(chunk, [LENGTH] * 2)] for chunk in CHUNKS]
    return torch.stack([torch.cat(rows) for rows in zip(*parts, strict=True)])


@pytest.mark.parametrize("tiny", LOWERED, indirect=True)
def test_logits_are_those_of_transformers(tiny: Tiny):
    texts = texts_of(tiny.model)
    paged = PagedTexts(tiny.model, texts, "torch")
    paged.model = program_of(paged)
    expected = tiny.reference.logits(texts)
    torch.testing.assert_close(read(paged), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
@pytest.mark.parametrize("threads", [1, 3])
def test_bfloat16_is_near_the_module_and_alike_in_any_company(tiny: Tiny, threads: int):
    model = tiny.model.bfloat16()
    texts = texts_of(model)
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for company in (False, True):
            paged = PagedTexts(model, texts, "torch")
            paged.kv_caches = [(k.bfloat16(), v.bfloat16()) for k, v in paged.kv_caches]
            expected = None if company else read(_copy(paged))
            paged.model = program_of(paged, torch.bfloat16)
            if company:
                rows.append(read(paged)[0])
            else:
                steps = [paged.advance((n, 0), [LENGTH] * 2)[0].clone() for n in (5, 1, 16, 1)]
                rows.append(torch.cat(steps))
                near = (rows[0].float() - expected[0].float()).abs().max()
                assert near < 0.1
    finally:
        torch.set_num_threads(before)
        model.float()
    assert torch.equal(*rows)


def _copy(paged: PagedTexts) -> PagedTexts:
    copy = PagedTexts(paged.model, paged.texts, "torch")
    copy.kv_caches = [(k.clone(), v.clone()) for k, v in paged.kv_caches]
    return copy


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_only_the_wanted_rows_get_logits(tiny: Tiny):
    texts = texts_of(tiny.model)
    paged = PagedTexts(tiny.model, texts, "torch")
    every = program_of(paged)

    def some(ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        all_rows = every(ids, ctx).clone()
        wanted = torch.tensor([8, 2])
        few = every(ids, ForwardContext(**{**vars(ctx), "logit_rows": wanted}))
        assert torch.equal(few, all_rows[wanted])
        return all_rows

    paged.model = some
    paged.advance(CHUNKS[0], [LENGTH] * 2)


@pytest.mark.parametrize("tiny", ["llama"], indirect=True)
def test_without_a_compiler_it_runs_in_torch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    paged = PagedTexts(tiny.model, texts_of(tiny.model), "torch")
    monkeypatch.setattr("assembler.kernels.cpu_library.find_compiler", lambda: None)
    cpu_library.cache_clear()
    try:
        assert cpu_step(tiny.model, paged.kv_caches, torch.device("cpu"), torch.float32) is None
    finally:
        cpu_library.cache_clear()
