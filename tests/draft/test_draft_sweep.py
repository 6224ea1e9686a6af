"""docs/draft.md says what was measured, and measuring again finds the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from draft_sweep import MEASURED, PAGE, first_cases, measure, page

QUICK = ("glm4", "phi")
# Every sixth of the others: of all families, in well under a minute.
SLOW = tuple(name for name in sorted(first_cases()) if name not in QUICK)[::6]


def test_the_page_has_the_measured_numbers() -> None:
    assert PAGE.read_text() == page(PAGE.read_text())


def test_every_architecture_was_measured() -> None:
    assert json.loads(MEASURED.read_text()).keys() == first_cases().keys()


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_measured_again(name: str, tmp_path: Path) -> None:
    recorded = json.loads(MEASURED.read_text())[name]
    again = f"python tests/draft/draft_sweep.py --measure {name}, if what ships has changed"
    assert measure(first_cases()[name], tmp_path) == recorded, again
