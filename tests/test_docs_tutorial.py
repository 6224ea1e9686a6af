"""docs/tutorial.md from its first line to its last: its files are written, its commands run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from page_commands import is_shown
from page_runs import ROOT, in_folder

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def words(message: str) -> list[str]:
    """Of a message that the page has in shorter lines."""
    return re.sub(r"/tmp/\S+", "/tmp/...", message).split()


@pytest.mark.slow
def test_from_nothing_to_verified(tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(ROOT / "examples" / "own_architecture", tmp_path / "own_architecture")
    run = in_folder(tmp_path, monkeypatch, capsys)
    verdicts, printed = [], ""
    for language, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if language == "yaml":
            name, _, content = text.removeprefix("# ").partition("\n")
            Path(name).write_text(content, "utf-8")
        for command in text.splitlines() if language == "sh" else ():
            printed = run(command.split()).replace(f"{ROOT}/", "")
            verdicts += re.findall(r"^(PASS|FAIL)$", printed, re.M)
        if not language:
            assert is_shown(text, printed), printed
        if text.startswith("error: "):
            assert words(text) == words(printed)
    assert verdicts == ["FAIL", "FAIL", "PASS"]
    for name in ("conf/kestrel.yaml", "weight_maps/kestrel.yaml"):  # the example is what came out
        example = (ROOT / "examples" / "own_architecture" / name).read_text("utf-8")
        assert Path(name).read_text("utf-8") == example.partition("\n")[2]
