"""Pictures of recorded releases, and a browser to look at them with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "architectures"))

from devtools import Browser, browser, find_chromium
from sparse_releases import assembled

from assembler.showing.gather import view_model
from assembler.showing.picture import ModelPicture

Draw = Callable[..., ModelPicture]  # (release, tp=1)


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Draws a recorded release; each once."""

    @cache
    def drawn(release: str, tp: int = 1) -> ModelPicture:
        return ModelPicture(view_model(assembled(release), tp))

    return drawn


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser; without one its tests are skipped, or fail where it was installed."""
    executable = find_chromium()
    if executable is None:
        missing = "needs Chromium (Debian: chromium-headless-shell), on the PATH or as $CHROMIUM"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    with browser(executable, tmp_path_factory.mktemp("profile")) as running:
        yield running
