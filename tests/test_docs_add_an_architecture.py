"""docs/add-an-architecture.md: its example is run as it stands, its tables name what exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from assembler import verify
from assembler.command_line import run_command
from assembler.model.registry import default_registry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-an-architecture.md").read_text("utf-8")
# (language, text) of every fenced block, in order.
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
COMMAND = "python -m assembler.verify checkpoint=tiny config=heron trust_remote_code=true\n"


@pytest.fixture
def heron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of the example; what transformers copies of its code stays beside it."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder in ("heron", "conf", "weight_maps"):
        (tmp_path / folder).mkdir()
    (config,) = (text for language, text in FENCED if language == "json")
    Path("heron/config.json").write_text(config)
    for language, text in FENCED:
        if language in ("python", "yaml") and (name := re.match(r"# (\S+/\S+)\n", text)):
            Path(name[1]).write_text(text)
    return tmp_path


def verified(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        run_command(verify.main, COMMAND.split()[3:])
    return capsys.readouterr().out


def without_errors(text: str) -> str:
    """The same where rounding differs: only the order of magnitude of large errors is kept."""
    text = re.sub(r"\d\.\de-\d\d|0\.0e\+00", "small", text)
    return re.sub(r"\d\.\d(e\+0\d)", r"n\1", text)


def test_the_worked_example(heron: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run, compare with the page, make the changes it asks for, run again."""
    start = FENCED.index(("sh", COMMAND))
    runs = 0
    for language, text in FENCED[start + 1 :]:
        if language == "diff":
            name, old, new = re.fullmatch(r"# (\S+)\n-(.*)\n\+(.*)\n", text).groups()
            lines = Path(name).read_text().split("\n")
            assert lines.count(old) == 1
            Path(name).write_text("\n".join(new if line == old else line for line in lines))
        elif not language:
            assert without_errors(verified(capsys)) == without_errors(text)
            runs += 1
        else:
            break
    assert runs == 5
    assert verified(capsys).endswith("PASS\n")


def _cells() -> list[str]:
    """The code in the right column of the tables of "You see, you write"."""
    section = PAGE.partition("## You see, you write")[2].partition("## The proof")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row.rpartition(" | ")[2])]


def test_the_tables_name_fields_that_exist() -> None:
    registry = default_registry()
    fields = {name for block in registry.values() for name in block.model_fields}
    fields |= {"partial", "theta", "per_layer", "count", "top", "kinds"}  # of settings, of layers
    of_maps = {"from", "parts", "per", "transpose", "optional", "gate_up", "down"}
    cells = _cells()
    assert len(cells) > 50
    for cell in cells:
        plain = re.sub(r'\$\{[^}]*\}|"[^"]*"', "", cell)
        keys = {key for key in re.findall(r"([\w.]+):", plain) if "." not in key}
        assert keys <= fields | of_maps, cell
        for block in re.findall(r"block: (\w+)", cell):
            assert block in registry, cell


def test_a_name_of_the_tables_is_a_value() -> None:
    """Choices such as `over: each_head` are ones that their fields take."""
    described = (ROOT / "docs" / "model-language.md").read_text("utf-8")
    for cell in _cells():
        for value in re.findall(r"(?:style|over|position|scores|activation|per): (\w+)", cell):
            assert f"`{value}`" in described or value in ("head", "kv_head"), cell
