"""docs/show.md: what it quotes is what comes out, and its screenshots are there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from assembler.showing.formats import ENDINGS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "show.md").read_text("utf-8")
FENCED = dict(re.findall(r"^```(text|mermaid|python)\n(.*?)^```$", PAGE, re.M | re.S))


def test_the_tree_is_quoted(draw) -> None:
    assert FENCED["text"] == draw("deepseek-v2-lite", 4).text("tree")


def test_the_mermaid_is_quoted(draw) -> None:
    assert FENCED["mermaid"] == draw("smollm2-135m").text("mermaid")


def test_every_format_is_listed() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\.\w+)` \|", PAGE, re.M)
    assert rows == [(ENDINGS[ending], ending) for _, ending in rows]
    assert {name for name, _ in rows} == set(ENDINGS.values())


def test_the_python_example_runs(draw, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    picture = draw("olmoe-1b-7b", 2)
    known = {"assembler": SimpleNamespace(show_model=lambda path, tp: picture)}
    exec(FENCED["python"].replace("import assembler\n", ""), known)
    assert capsys.readouterr().out.startswith("olmoe-1b-7b")
    assert Path("model.html").is_file() and known["experts"] > 6e9


@pytest.mark.parametrize("image", re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE))
def test_screenshots_are_there_and_small(image: str) -> None:
    data = (DOCS / image).read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 150_000
