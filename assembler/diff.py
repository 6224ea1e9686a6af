"""`python -m assembler.diff conf=qwen3 other=llama`: how one architecture differs from another.

Blocks, fields, equations and weight maps are compared as written, so neither a checkpoint nor a
config.json is needed. The exit status is 0 when the two are the same, 1 when they differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError

if TYPE_CHECKING:
    from assembler.comparing.difference import Difference

USAGE = """\
usage: python -m assembler.diff conf=NAME other=NAME [format=...]

  python -m assembler.diff conf=qwen3 other=llama
  python -m assembler.diff conf=./my.yaml other=gemma2 format=markdown

hydra.searchpath=[DIR] names more folders with conf/ and weight_maps/.
"""


class DiffOptions(Options):
    """What to compare."""

    conf: str | None = Field(None, description="name or path of a model YAML; needed")
    other: str | None = Field(None, description="what it is compared with; needed")
    format: Literal["text", "markdown", "json"] = Field("text", description="text, markdown, json")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(DiffOptions)}")
        return 0
    arguments = parse_arguments(argv, DiffOptions)
    options = DiffOptions(**arguments.values[0])
    if not options.conf or not options.other:
        raise OptionError("two architectures are wanted: conf=NAME other=NAME")
    if arguments.overrides:
        said = ", ".join(arguments.overrides)
        raise OptionError(f"{said}: files are compared as they are; put it in a YAML of your own")
    difference = diff_architectures(options.conf, options.other, search_path=arguments.search_path)
    _print(difference, options.format)
    return 0 if difference.is_empty else 1


def diff_architectures(
    conf: str | Path, other: str | Path, *, search_path: Sequence[str | Path] = ()
) -> Difference:
    """The difference of two architectures: blocks, fields, equations, weight maps.

    Args:
        conf, other: names or paths of model YAMLs.
        search_path: more folders that hold conf/ and weight_maps/.

    Raises:
        AssemblerError: one of them is not there, or cannot be read.
    """
    from assembler.comparing.difference import compare_architectures

    return compare_architectures(conf, other, search_path)


def _print(difference: Difference, form: str) -> None:
    if form == "json":
        print(json.dumps(difference.to_json(), indent=2))
        return
    from assembler.comparing.text import text_lines

    text = "\n".join(text_lines(difference))
    if form == "text" and sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text)


if __name__ == "__main__":
    run_command(main)
