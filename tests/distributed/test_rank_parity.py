"""Every architecture split over real processes gives the logits of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launched import TESTS, finish, launch
from parity_cases import CASES
from tiny_checkpoints import make_checkpoint, token_ids

import assembler

TOLERANCE = 3e-5


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[Path, torch.Tensor]:
    """The logits of every tiny checkpoint in one process, by folder."""
    found = {}
    for case in CASES:
        folder = tmp_path_factory.getbasetemp() / "ranks" / case.name
        folder.mkdir(parents=True)
        make_checkpoint(case, folder)
        with torch.no_grad():
            found[folder] = assembler.logits(assembler.load_model(folder), token_ids())
    return found


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_logits_equal_those_of_one_process(size: int, whole, tmp_path: Path) -> None:
    script = str(TESTS / "distributed" / "parity_rank.py")
    out = tmp_path / "logits.pt"
    ranks = finish(launch([script, str(out), *map(str, whole)], size))
    assert [status for status, _, _ in ranks] == [0] * size, ranks
    split = torch.load(out)
    wrong = {}
    for folder, expected in whole.items():
        error = float((split[folder.name] - expected).abs().max())
        if error > TOLERANCE * max(1.0, float(expected.std())):
            wrong[folder.name] = error
    assert len(split) == len(CASES) and not wrong
