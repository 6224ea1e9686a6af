"""`python -m assembler.schema`: write the JSON Schemas from which editors complete the YAML files.

A YAML file asks for its schema in its first line:

    # yaml-language-server: $schema=../docs/schema/model.schema.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError

USAGE = """\
usage: python -m assembler.schema [out=FOLDER]

Writes model.schema.json (for conf/*.yaml) and weight_map.schema.json (for weight_maps/*.yaml).
"""


class SchemaOptions(Options):
    """Where to write."""

    out: str = Field("docs/schema", min_length=1, description="folder, made if it is not there")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(SchemaOptions)}")
        return 0
    arguments = parse_arguments(argv, SchemaOptions)
    if arguments.overrides or arguments.search_path:
        raise OptionError("the schemas are those of the language: no conf., no hydra.searchpath")
    folder = Path(SchemaOptions(**arguments.values[0]).out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas().items():
            path = folder / f"{name}.schema.json"
            path.write_text(as_text(schema), "utf-8")
            print(path)
    except OSError as error:
        raise OptionError(f"out={folder}: cannot be written: {error}") from None
    return 0


def schemas() -> dict[str, dict[str, Any]]:
    """Both schemas, by the name of their file."""
    from assembler.model.json_schema import model_schema
    from assembler.model.registry import default_registry
    from assembler.weights.map_schema import weight_map_schema

    return {"model": model_schema(default_registry()), "weight_map": weight_map_schema()}


def as_text(schema: dict[str, Any]) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    run_command(main)
