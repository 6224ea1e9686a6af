"""`python -m assembler.draft checkpoint=... out=...`: the first version of a new model's YAMLs.

Reads config.json and headers, finds the nearest architecture that ships, and writes what differs.
The exit status is 1 when the draft does not cover the checkpoint yet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError

USAGE = """\
usage: python -m assembler.draft checkpoint=WHERE [out=FOLDER] [name=NAME] [key=value ...]

  python -m assembler.draft checkpoint=path/to/model out=./mine
  python -m assembler.draft checkpoint=organisation/model name=heron parent=qwen3

Writes out/conf/NAME.yaml and out/weight_maps/NAME.yaml. No weight is read or downloaded.
hydra.searchpath=[DIR] names more folders with conf/ and weight_maps/ to draft from.
"""


class DraftOptions(Options):
    """What to draft, and where."""

    checkpoint: str | None = Field(
        None, description="folder or .safetensors file with its config.json, or Hub id; needed"
    )
    out: str = Field(".", description="the folder that gets conf/ and weight_maps/")
    name: str | None = Field(None, description="of both files; null: config.json's model_type")
    parent: str | None = Field(
        None, description="the architecture that the draft extends; null: the nearest"
    )
    force: bool = Field(False, description="write over files that are there")
    format: Literal["text", "json"] = Field("text", description="text or json")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(DraftOptions)}")
        return 0
    arguments = parse_arguments(argv, DraftOptions)
    options = DraftOptions(**arguments.values[0])
    if arguments.overrides:
        raise OptionError(
            f"{arguments.overrides[0]}: a draft has no overrides; write them into its conf"
        )
    if not options.checkpoint:
        raise OptionError("which checkpoint? Pass checkpoint=FOLDER or a Hub id")
    from assembler.drafting.drafting import draft_architecture
    from assembler.drafting.report import report_lines

    report = draft_architecture(
        options.checkpoint,
        options.out,
        options.name,
        parent=options.parent,
        force=options.force,
        search_path=arguments.search_path,
    )
    if options.format == "json":
        print(json.dumps(report.to_json(), indent=2))
    else:
        print("\n".join(report_lines(report)))
    return 0 if report.complete else 1


if __name__ == "__main__":
    run_command(main)
