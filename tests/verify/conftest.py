"""A folder of a user's own, with a conf and a map that build on shipped ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., None]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes conf/own.yaml and, if it is given, weight_maps/own.yaml, each over `base`."""
    monkeypatch.chdir(tmp_path)
    for folder in ("conf", "weight_maps"):
        (tmp_path / folder).mkdir()

    def write(base: str, conf: str = "", weights: str = "") -> None:
        mine = "weight_map: own\n" if weights else ""
        (tmp_path / "conf/own.yaml").write_text(f"defaults: [{base}, _self_]\n{mine}{conf}")
        if weights:
            (tmp_path / "weight_maps/own.yaml").write_text(f"extends: {base}\nweights:\n{weights}")

    return write
