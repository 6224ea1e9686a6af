"""Drafts of invented checkpoints, read back as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from invented_checkpoints import write_checkpoint

from assembler.drafting.drafting import draft_architecture
from assembler.drafting.report import DraftReport


class Draft(NamedTuple):
    """What was written for a checkpoint."""

    report: DraftReport
    conf: Mapping[str, Any]
    weights: Mapping[str, Any]
    text: str

    @property
    def layer(self) -> Mapping[str, Any]:
        """The rules of a layer in the map."""
        return self.weights["weights"]["layers.{i}"]

    def block(self, name: str) -> Any:
        """What the conf says of a layer's block."""
        return self.conf["layers"]["blocks"][name]


Drafting = Callable[..., Draft]


@pytest.fixture
def draft(tmp_path: Path) -> Drafting:
    """Drafts a Heron with the given config fields and tensors, from Llama unless told otherwise."""

    def make(*about: Any, parent: str | None = "llama") -> Draft:
        checkpoint = write_checkpoint(tmp_path / "checkpoint", *about)
        report = draft_architecture(checkpoint, tmp_path / "out", parent=parent, force=True)
        text = report.conf.read_text()
        weights = yaml.safe_load(report.weight_map.read_text())
        return Draft(report, yaml.safe_load(text), weights, text)

    return make
