"""Tokenizers of every layout, saved once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizer_builders import BACKENDS, save


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved tokenizer of every layout: name -> folder."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: save(build(), root / name) for name, build in BACKENDS.items()}
