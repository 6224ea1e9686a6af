"""Every architecture split over real processes gives the logits of one process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from cases import CASES, QUICK, Case, named
from launched import TESTS, finish, launch
from tiny_checkpoints import make_checkpoint, token_ids

import assembler
from assembler.blocks.parallel import TensorParallel
from assembler.errors import SpecError
from assembler.loading import assemble

TOLERANCE = 3e-5


def test_two_ranks_of_the_representative_rows(tmp_path: Path) -> None:
    assert compare([named(name) for name in sorted(QUICK)], 2, tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_of_all_rows(size: int, tmp_path: Path) -> None:
    refused = compare(CASES, size, tmp_path)
    # Heads that cannot be shared are refused by name; that is for odd sizes, not the rule.
    assert len(refused) * 10 <= len(CASES), refused


@torch.no_grad()
def compare(cases: Iterable[Case], size: int, folder: Path) -> set[str]:
    """Run the cases over `size` processes and assert; returns those that refuse the size."""
    whole, refused = {}, set()
    for case in cases:
        path = folder / "models" / case.name
        path.mkdir(parents=True)
        make_checkpoint(case, path)
        try:
            assemble(path, tp=TensorParallel(0, size))
        except SpecError:
            refused.add(case.name)
            continue
        whole[path] = assembler.logits(assembler.load_model(path), token_ids())
    script = str(TESTS / "distributed" / "parity_rank.py")
    out = folder / "logits.pt"
    ranks = finish(launch([script, str(out), *map(str, whole)], size), limit=600)
    assert [status for status, _, _ in ranks] == [0] * size, ranks
    split = torch.load(out)
    wrong = {}
    for path, expected in whole.items():
        error = float((split[path.name] - expected).abs().max())
        if error > TOLERANCE * max(1.0, float(expected.std())):
            wrong[path.name] = error
    assert len(split) == len(whole) and not wrong
    return refused
