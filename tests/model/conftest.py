"""The fixture of the model tests: a folder with confs of toy blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_confs import Workspace


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASSEMBLER_PATH", raising=False)
    return Workspace(tmp_path)
