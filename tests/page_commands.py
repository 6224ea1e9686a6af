"""The commands of a page, and what it says that they print: read from Markdown and run.

A block of `sh` holds commands; the block without a language behind it, if there is one, holds what
the last of them prints. In such a text a line `...` stands for any lines, and differences of logits
(1.4e-06) for any as small.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_TINY = re.compile(r"\b\d\.\de-0[5-9]\b")


@dataclass(frozen=True)
class Step:
    """A command of a page."""

    argv: tuple[str, ...]
    shown: str | None  # what the page says that it prints
    line: int


def steps_of(page: Path) -> Iterator[Step]:
    """The commands of the page in order, comments left out."""
    text = page.read_text("utf-8")
    blocks = list(_BLOCK.finditer(text))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] not in ("sh", "bash"):
            continue
        joined = block[2].replace("\\\n", " ")
        commands = [shlex.split(line, comments=True) for line in joined.splitlines()]
        commands = [command for command in commands if command]
        shown = following[2] if following is not None and not following[1] else None
        line = text[: block.start()].count("\n") + 2
        for command in commands[:-1]:
            yield Step(tuple(command), None, line)
        yield Step(tuple(commands[-1]), shown, line)


def run_steps(page: Path, run: Callable[[Sequence[str]], str]) -> int:
    """Run every command with `run`, which returns what it printed; how many there were."""
    steps = list(steps_of(page))
    for step in steps:
        printed = run(step.argv)
        if step.shown is not None:
            where = f"{page.name}:{step.line}: {shlex.join(step.argv)}"
            assert is_shown(step.shown, printed), f"{where} prints\n{printed}"
    return len(steps)


def is_shown(shown: str, printed: str) -> bool:
    """Whether a page's text is what was printed."""
    expected, lines = _lines(shown), _lines(printed)
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == "..." else re.escape(line) + r"\n" for line in expected
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def _lines(text: str) -> list[str]:
    """The lines of a text without what a terminal does not show, and empty ones around it."""
    lines = "\n".join(_TINY.sub("TINY", line.rstrip()) for line in text.splitlines())
    return lines.strip("\n").splitlines()
