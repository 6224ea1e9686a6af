"""The site of docs/: it builds, its links lead somewhere, and it needs no network to be read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import docs_commands
import pytest
import yaml
from docs_site import build_site
from markdown_it import MarkdownIt
from page_commands import run_steps
from page_runs import in_folder

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MARKDOWN = MarkdownIt("commonmark").enable("table")


def test_the_page_of_commands_is_what_they_say():
    """Refresh with `python tests/docs_commands.py`."""
    assert sorted(docs_commands.COMMANDS) == docs_commands.commands()
    assert docs_commands.PAGE.read_text("utf-8") == docs_commands.page()


def _entries(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _entries(entry)


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert sorted(_entries(nav)) == [page.name for page in PAGES]


def _links(page: Path) -> Iterator[str]:
    for token in MARKDOWN.parse(page.read_text("utf-8")):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            if target and not re.match(r"\w+:", str(target)):
                yield str(target)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    tokens = MARKDOWN.parse(page.read_text("utf-8"))
    titles = [b for a, b in itertools.pairwise(tokens) if a.type == "heading_open"]
    texts = ["".join(c.content for c in title.children or ()) for title in titles]
    return {re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_within_docs(page: Path):
    """So that they work on the site as well as where the repository is shown."""
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (DOCS / path).resolve() if path else page
        assert target.is_file() and target.is_relative_to(DOCS), f"{page.name}: {link}"
        assert not anchor or anchor in _anchors(target), f"{page.name}: no heading for {link}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    return build_site(tmp_path_factory.mktemp("site"))


def test_every_page_is_built(site: Path):
    assert {page.stem for page in PAGES} <= {page.stem for page in site.glob("*.html")}


def test_nothing_is_fetched_from_elsewhere(site: Path):
    fetched = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)")
    for page in site.glob("*.html"):
        assert fetched.findall(page.read_text("utf-8")) == [], page.name
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text("utf-8"), style.name


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path: Path, monkeypatch, capsys):
    assert run_steps(DOCS / "quick-start.md", in_folder(tmp_path, monkeypatch, capsys)) > 5
    assert (tmp_path / "smollm2.html").stat().st_size > 10_000
    for example in re.findall(
        r"```python\n(.*?)```", (DOCS / "quick-start.md").read_text("utf-8"), re.S
    ):
        exec(example, {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "' Paris." in said and "attn_norm" in said
