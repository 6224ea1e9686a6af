"""docs/commands.md: what `--help` of every command says.

    python tests/docs_commands.py

writes the page; a test compares.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "commands.md"
# In the order in which a person meets them: what each is for, and the page that tells more.
COMMANDS = {
    "generate": ("text from a model", "engine.md"),
    "coverage": ("would it load? which tensor fills what?", "weight-maps.md"),
    "explain": ("one tensor's story, from file to rank", "weight-maps.md"),
    "show": ("the model as a tree, a page, a picture", "show.md"),
    "memory": ("what a model takes, and what fits", "memory.md"),
    "diff": ("how one architecture differs from another", "diff.md"),
    "new": ("a folder for an architecture of one's own", "tutorial.md"),
    "draft": ("the first version of a new model's YAML", "draft.md"),
    "verify": ("the same logits as transformers? where not, and why?", "add-an-architecture.md"),
    "export": ("a checkpoint as a folder that transformers loads", "export.md"),
    "bench": ("how fast is it here?", "bench.md"),
    "schema": ("the JSON Schemas that editors read", "quick-start.md"),
}
_INTRODUCTION = """\
# Commands

Every command is `python -m assembler.NAME key=value ...`. This page is what each says with
`--help`.

- Text goes to stdout, progress and errors to stderr. The exit status is 0 when all is well, 1 when
  the command found something (a tensor without a place, a logit that differs), 2 when it could not
  do its work, 130 after Ctrl-C.
- A wrong key or value is refused with the nearest right one. Text options are taken literally: a
  prompt needs no other quoting than the shell's.
- Fields of the model are overridden below `conf.`: `conf.layers.count=2`.
- `-m` runs a command over several values and makes one table: [Multirun](multirun.md).
- Your own `conf/` and `weight_maps/` in the current folder come before those that ship;
  `hydra.searchpath=[DIR]` and `$ASSEMBLER_PATH` name more.
"""


def commands() -> list[str]:
    """The modules of the package that are commands."""
    files = (ROOT / "assembler").glob("*.py")
    return sorted(f.stem for f in files if "\n    run_command(main)\n" in f.read_text("utf-8"))


def help_of(name: str) -> str:
    """What a command says with --help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert importlib.import_module(f"assembler.{name}").main(["--help"]) == 0
    return said.getvalue().rstrip()


def page() -> str:
    """The text of the page."""
    rows = [f"| [{name}](#{name}) | {says} |" for name, (says, _) in COMMANDS.items()]
    parts = [_INTRODUCTION, "\n".join(["| command | for |", "| --- | --- |", *rows, ""])]
    for name, (_, more) in COMMANDS.items():
        title = (ROOT / "docs" / more).read_text("utf-8").partition("\n")[0].lstrip("# ")
        help_text = _without_names(help_of(name))
        parts.append(f"## {name}\n\n```text\n{help_text}\n```\n\nMore: [{title}]({more}).\n")
    return "\n".join(parts)


def _without_names(text: str) -> str:
    """The list of all confs is that of the gallery."""
    return re.sub(r"^conf is one of: .*$", "conf is one of: afmoe, apertus, ...", text, flags=re.M)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
