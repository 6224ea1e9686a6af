"""Every architecture runs on the CPU kernels alone, and gives the logits of the torch module.

Steps mix a chunk of one text's prompt with decodes of another. The references against transformers
are elsewhere; here both ways run the same weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import Case, sweep
from tiny_checkpoints import make_checkpoint, token_ids

from assembler.engine.cpu_step import CPUStep
from assembler.engine.lowering import lower
from assembler.kernels.cpu_library import cpu_library
from assembler.loading import load_model
from assembler.verifying.paged_texts import PagedTexts

TOLERANCE = 3e-5
MAX_ROWS = 32
CHUNKS = ((9, 4), (1, 1), (3, 1), (10, 17))  # tokens of either text a step takes

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="there is no C++ compiler")


def _read(paged: PagedTexts) -> torch.Tensor:
    """The logits of both texts [2, length, vocab], read in steps of both at once."""
    known = [paged.texts.shape[1]] * 2
    parts = [[rows.clone() for rows in paged.advance(chunk, known)] for chunk in CHUNKS]
    return torch.stack([torch.cat(rows) for rows in zip(*parts, strict=True)])


@pytest.mark.parametrize("case", sweep())
def test_steps_give_what_the_module_gives(case: Case, tmp_path: Path):
    make_checkpoint(case, tmp_path)
    model = load_model(tmp_path)
    paged = PagedTexts(model, token_ids(), "torch")
    expected = _read(paged)
    paged = PagedTexts(model, token_ids(), "torch")
    program = lower(model, paged.kv_caches, MAX_ROWS, torch.float32)
    assert program.calls == []
    paged.model = CPUStep(program)
    bound = TOLERANCE * max(1.0, float(expected.std()))
    torch.testing.assert_close(_read(paged), expected, rtol=0, atol=bound)
