"""A token's logits are the same bits however many sequences decode beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from assembler.engine.cpu_step import CPUStep
from assembler.engine.lowering import lower
from assembler.kernels.cpu_library import cpu_library
from assembler.loading import load_model
from assembler.verifying.paged_texts import PagedTexts
from assembler.verifying.tiny import write_tiny

TEXTS = 48
LENGTH = 70  # more than a block of keys
MAX_ROWS = TEXTS * LENGTH
SIZES = (1, 2, 8, 14, 15, 16, 17, 20, 23, 24, 25, 27, 28, 29, 32, 33, 48)

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module", params=["qwen2", "phi"])  # gated with biases; plain, partial heads
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder: Path = tmp_path_factory.mktemp(request.param)
    write_tiny(folder, model_type=request.param)
    return load_model(folder)


def step_of(model: nn.Module, dtype: torch.dtype) -> PagedTexts:
    """Texts that are read up to their last token."""
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(1, model.spec.vocab_size - 6, (TEXTS, LENGTH), generator=generator)
    paged = PagedTexts(model, texts, "torch")
    paged.kv_caches = [tuple(cache.to(dtype) for cache in pair) for pair in paged.kv_caches]
    paged.model = CPUStep(lower(model, paged.kv_caches, MAX_ROWS, dtype))
    paged.advance([LENGTH - 1] * TEXTS, [LENGTH] * TEXTS)
    return paged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_the_batch(model: nn.Module, dtype: torch.dtype, threads: int):
    model.to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        paged = step_of(model, dtype)
        found = {}
        for size in SIZES:
            paged.done = [LENGTH - 1] * TEXTS  # the token is read, and stored, anew
            counts = [1] * size + [0] * (TEXTS - size)
            parts = paged.advance(counts, [LENGTH] * TEXTS)
            found[size] = torch.cat(parts[:size]).clone()
    finally:
        torch.set_num_threads(before)
        model.float()
    for size, rows in found.items():
        assert torch.equal(rows, found[TEXTS][:size]), size
