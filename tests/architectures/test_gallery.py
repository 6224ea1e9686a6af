"""docs/gallery.md says what is in conf/, and what the parity rows measure."""

from __future__ import annotations

import json

import pytest
import torch
from cases import CASES, QUICK, Case, named, sweep
from docs_gallery import MEASURED, OWN_REFERENCE, PAGE, page, rounded_up
from tiny_checkpoints import make_checkpoint, reference_logits, token_ids

import assembler
from assembler.model.conf_files import conf_names, search_roots
from assembler.model.detect import detect_conf


def test_the_page_is_generated() -> None:
    assert page() == PAGE.read_text(), "run: python tests/docs_gallery.py"


def test_every_conf_has_a_row_and_every_row_a_measurement() -> None:
    shipped = set(conf_names(search_roots())) - {"smollm2"}  # a checkpoint of Llama's
    assert shipped == {case.conf for case in CASES} | OWN_REFERENCE
    assert set(json.loads(MEASURED.read_text())) == {case.name for case in CASES}, (
        "run: python tests/docs_gallery.py --measure"
    )


def test_the_default_rows_are_a_representative_tenth() -> None:
    assert {named(name).name for name in QUICK} == QUICK
    assert 0.07 <= len(QUICK) / len(CASES) <= 0.15


def test_rounded_up() -> None:
    assert [rounded_up(x) for x in (1.31e-6, 9.6e-7, 2e-6, 0.0)] == [2e-6, 1e-6, 2e-6, 0.0]


@pytest.mark.parametrize("case", sweep())
@torch.no_grad()
def test_the_measurement_still_holds(case: Case, tmp_path) -> None:
    """Other processors round otherwise, so up to three times the recorded error is the same."""
    reference = make_checkpoint(case, tmp_path)
    theirs = reference_logits(reference, token_ids())
    ours = assembler.logits(assembler.load_model(tmp_path), token_ids())
    error = float((ours - theirs).abs().max() / max(1.0, theirs.std()))
    assert error <= max(3 * json.loads(MEASURED.read_text())[case.name], 5e-6)
    assert detect_conf(json.loads((tmp_path / "config.json").read_text()), search_roots()).name == (
        case.conf
    )
