"""What people see in an editor: yaml-language-server (VS Code's, Neovim's, ...) on the YAML files.

It has a YAML parser and a schema validator of its own, in JavaScript.
    npm install -g yaml-language-server
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from language_server import NAME, LanguageServer, find_server, language_server

ROOT = Path(__file__).resolve().parents[2]
CONF, MAP = ROOT / "conf" / "llama.yaml", ROOT / "weight_maps" / "llama.yaml"
NUMBERS = itertools.count()
MODEL_SCHEMA = "# yaml-language-server: $schema=../docs/schema/model.schema.json\n"

pytestmark = [
    pytest.mark.editor,
    pytest.mark.skipif(
        find_server() is None,
        reason=f"needs {NAME} (npm install -g {NAME}) on the path or in $YAML_LANGUAGE_SERVER",
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[LanguageServer]:
    with language_server(find_server(), ROOT) as running:
        yield running


def findings(server: LanguageServer, texts: dict[Path, str]) -> list[tuple[Path, int, str, str]]:
    """(file, line from 1, the marked text, message) of each diagnostic of `texts`."""
    found = []
    for path, diagnostics in server.open(texts).items():
        lines = texts[path].splitlines()
        for diagnostic in diagnostics:
            start, end = diagnostic["range"]["start"], diagnostic["range"]["end"]
            marked = lines[start["line"]][start["character"] : end["character"]]
            found.append((path, start["line"] + 1, marked, diagnostic["message"]))
    return found


def unsaved(beside: Path) -> Path:
    """The path of a file that is only in the editor."""
    return beside.with_name(f"unsaved_{next(NUMBERS)}.yaml")


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_every_shipped_file_opens_without_a_finding(server: LanguageServer) -> None:
    files = [*sorted(ROOT.glob("conf/*.yaml")), *sorted(ROOT.glob("weight_maps/**/*.yaml"))]
    assert len(files) > 150
    texts = {file: file.read_text("utf-8") for file in files}
    wrong = unsaved(CONF)  # the one that is found
    found = findings(server, {**texts, wrong: texts[CONF].replace("count:", "cuont:", 1)})
    assert [(path, line) for path, line, _, _ in found] == [
        (wrong, line_of(texts[CONF], "count:"))
    ], found


@pytest.mark.parametrize(
    ("file", "right", "wrong", "marked", "message"),
    [
        (CONF, "num_heads:", "num_heds:", "num_heds", "num_heds is not allowed"),
        (CONF, "block: RopeAttn", "block: RopeAtn", "RopeAtn", "Value is not accepted"),
        (CONF, "hidden_size:", "hidden_sise:", None, "Incorrect type"),
        (CONF, "  wiring:\n", "  wirng:\n", "wirng", "wirng is not allowed"),
        (MAP, "ignore:", "ignroe:", "ignroe", "ignroe is not allowed"),
        (MAP, "row: [attn.o,", "rows: [attn.o,", "rows", "rows is not allowed"),
    ],
)
def test_a_mistake_is_shown_at_its_line(server, file, right, wrong, marked, message) -> None:
    text = file.read_text("utf-8").replace(right, wrong, 1)
    ((_, line, shown, said),) = findings(server, {unsaved(file): text})
    assert line == line_of(text, wrong.strip())
    assert message in said and marked in (None, shown)


def test_fields_are_proposed_for_the_block_that_is_named(server: LanguageServer) -> None:
    text = MODEL_SCHEMA + "layers:\n  blocks:\n    mlp:\n      block: GatedMLP\n      \n"
    path = unsaved(CONF)
    server.open({path: text})
    proposed = server.completions(path, line=5, character=6)
    assert {"intermediate_size", "activation", "bias"} <= set(proposed)
    assert not {"num_heads", "qk_norm", "block"} & set(proposed)


def test_blocks_are_proposed(server: LanguageServer) -> None:
    text = MODEL_SCHEMA + "layers:\n  blocks:\n    attn:\n      block: \n"
    path = unsaved(CONF)
    server.open({path: text})
    proposed = server.completions(path, line=4, character=13)
    assert {"RopeAttn", "AlibiAttn", "LatentAttn", "GatedMLP", "RMSNorm"} <= set(proposed)


def test_a_field_is_explained(server: LanguageServer) -> None:
    text = MODEL_SCHEMA + "layers:\n  blocks:\n    attn: {block: RopeAttn, window: 4}\n"
    path = unsaved(CONF)
    server.open({path: text})
    meaning = server.hover(path, line=3, character=text.splitlines()[3].index("window") + 1)
    assert "Sliding window in tokens" in meaning
