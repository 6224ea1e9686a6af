"""`coverage format=markdown`: GitHub-flavoured Markdown, read back by a parser we did not write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_runs import Run
from markdown_it import MarkdownIt
from markdown_it.token import Token
from tiny_llama import change_tensors

from assembler import coverage
from assembler.weights.report_markdown import code, escape

HARD = ["a|b", "q_proj *and* k_proj", "<b> & [x](y)", "`a|b` or *", "C:\\x\\|", "#1 ~~x~~", "a`b"]


def words(token: Token) -> str:
    """What a reader sees of an inline token."""
    shown = []
    for child in token.children or []:
        shown.append("\n" if child.content == "<br>" else child.content)
        assert child.type in ("text", "code_inline", "html_inline", "text_special") or (
            child.type.startswith("strong") and not child.content
        ), child
    return "".join(shown)


def tables(markdown: str) -> list[list[list[str]]]:
    """The cells of every table, header first."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    found: list[list[list[str]]] = []
    cell = False
    for token in parser.parse(markdown):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            cell = True
        elif token.type == "inline" and cell:
            found[-1][-1].append(words(token))
            cell = False
    return found


def test_a_report_holds_what_the_json_holds(run: Run, tiny: Path):
    result = run(coverage, f"checkpoint={tiny}", "format=markdown", "tp=2")
    assert (result.status, result.err) == (0, "")
    data = json.loads(run(coverage, f"checkpoint={tiny}", "format=json", "tp=2").out)
    [[header, *rows]] = tables(result.out)
    assert header[0] == "parameter" and header[-1] == "tp=2"
    assert [row[:2] for row in rows] == [[r["target"], r["sources"]] for r in data["rows"]]
    assert [row[2].split("\n") for row in rows] == [r["ops"] or [""] for r in data["rows"]]
    assert [row[4] for row in rows] == [r["dtype"] for r in data["rows"]]
    assert [row[6] for row in rows] == [r["split"] or "whole" for r in data["rows"]]
    assert f"**{data['summary']}**" in result.out and "- writes back: all" in result.out
    assert "- weights of 2 ranks, each: " in result.out


def test_findings_and_what_is_ignored(run: Run, copy: Path):
    def damage(weights) -> None:
        weights["a|b.weight"] = weights.pop("model.norm.weight")

    change_tensors(copy, damage)
    result = run(coverage, f"checkpoint={copy}", "format=markdown", "conf.layers.count=1")
    assert result.status == 1
    data = json.loads(run(coverage, f"checkpoint={copy}", "format=json", "conf.layers.count=1").out)
    [[_, *findings], _] = tables(result.out)
    shown = [(kind, subject) for kind, subject, *_ in findings]
    assert shown == [(f["kind"], f["subject"]) for f in data["findings"]]
    assert ("unclaimed", "a|b.weight") in shown
    assert all(len(row) == 4 for row in findings)
    [ignored] = data["ignored"]
    assert f"- ignored: `{ignored['tensors']}` (" in result.out


def test_an_overview(run: Run, tiny: Path):
    result = run(coverage, f"checkpoint={tiny}", "format=markdown", "tp=[1,3,4]")
    assert result.status == 1
    [[header, *rows]] = tables(result.out)
    assert header[:3] == ["tp", "works", "weights of a rank"]
    assert [row[0] for row in rows] == ["1", "3", "4"]
    assert "which 3 ranks cannot share" in rows[1][1] and "each held 2 times" in rows[2][4]
    assert "works with tp=1,4, not with tp=3" in result.out


def test_a_lone_size_that_is_refused(run: Run, tiny: Path):
    result = run(coverage, f"checkpoint={tiny}", "format=markdown", "tp=3")
    assert result.status == 1 and result.out.startswith("❌ **tp=3 cannot work**: layers.0")


@pytest.mark.parametrize("text", HARD)
def test_text_in_a_cell_is_read_as_it_was_written(text: str):
    cells = f"| x | y |\n| --- | --- |\n| {escape(text)} | {code(text)} |\n"
    [[_, [prose, name]]] = tables(cells)
    plain = text.replace("`", "") if text.count("`") % 2 == 0 else text
    assert prose == plain
    assert name == text
