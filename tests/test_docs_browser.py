"""The site in a browser, opened as files: its search works there, light and dark, on a phone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_site import build_site

sys.path.append(str(Path(__file__).parent / "show"))

from devtools import Browser, browser, find_chromium  # beside the tests of models' pages

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    """A browser that remembers nothing."""
    executable = find_chromium()
    if executable is None:
        assert not os.environ.get("REQUIRE_BROWSER"), "Chromium is missing"
        pytest.skip("needs Chromium (Debian: chromium-headless-shell)")
    with browser(executable, tmp_path / "profile") as running:
        yield running


def test_search_needs_no_server(site: Path, chromium: Browser):
    page = chromium.page(site / "index.html")
    page.until("!!document.querySelector('[data-md-component=search]')")
    page.press("/")
    page.until("!!document.activeElement.shadowRoot")
    page.type("sliding window")
    found = "[...document.activeElement.shadowRoot.querySelectorAll('a')].map(a => a.href).join()"
    page.until(f"{found}.includes('model-language.html')")
    assert page.complaints() == []


@pytest.mark.parametrize(("asked", "is_dark"), [("light", False), ("dark", True)])
def test_it_is_as_light_as_the_reader_asks(
    asked: str, is_dark: bool, site: Path, chromium: Browser
):
    page = chromium.page(site / "faq.html", prefers_color_scheme=asked, width=390, height=844)
    colour = "getComputedStyle(document.body).backgroundColor"
    red = int(page.run(colour).partition("(")[2].partition(",")[0])
    assert (red < 128) == is_dark
    assert page.run("document.documentElement.scrollWidth") <= 390  # nothing hangs over
    assert page.complaints() == []
