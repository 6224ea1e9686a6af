"""The kernels compiled for a processor without AVX-512 give equal results."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from assembler.engine.cpu_step import CPUStep
from assembler.engine.lowering import lower
from assembler.kernels import cpu_library as module
from assembler.kernels.cpu_library import cpu_library
from assembler.loading import load_model
from assembler.verifying.paged_texts import PagedTexts
from assembler.verifying.tiny import write_tiny

LENGTH = 40
CHUNKS = ((21, 4), (1, 1), (18, 35))  # tokens of either text a step takes
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 0.1}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86"),
]


@pytest.fixture(scope="module")
def without_avx512() -> Iterator[None]:
    flags = [flag if "march" not in flag else "-march=x86-64-v3" for flag in module.FLAGS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FLAGS", tuple(flags))
        cpu_library.cache_clear()
        yield
    cpu_library.cache_clear()


def _read(paged: PagedTexts) -> torch.Tensor:
    """The logits of both texts [2, LENGTH, vocab], read in steps of both at once."""
    parts = [[rows.clone() for rows in paged.advance(chunk, [LENGTH] * 2)] for chunk in CHUNKS]
    return torch.stack([torch.cat(rows) for rows in zip(*parts, strict=True)])


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [  # experts are chosen by scores: rounded ones choose others now and then
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        ("gemma2", torch.float32),
        ("gemma2", torch.bfloat16),
        ("qwen3_moe", torch.float32),
    ],
)
def test_logits_are_those_of_the_module(
    without_avx512: None, model_type: str, dtype: torch.dtype, tmp_path: Path
):
    write_tiny(tmp_path, model_type=model_type)
    model = load_model(tmp_path).to(dtype)
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(1, model.spec.vocab_size - 6, (2, LENGTH), generator=generator)
    found = []
    for compiled in (False, True):
        paged = PagedTexts(model, texts, "torch")
        paged.kv_caches = [tuple(cache.to(dtype) for cache in pair) for pair in paged.kv_caches]
        if compiled:
            paged.model = CPUStep(lower(model, paged.kv_caches, 64, dtype))
        found.append(_read(paged).float())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=TOLERANCE[dtype])
