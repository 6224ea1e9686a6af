"""`python -m assembler.new name=... from=qwen3`: a folder in which an architecture of yours begins.

It holds two YAML files that inherit everything, a config.json, a README and a parity test, which
passes as generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, create_model

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError

USAGE = """\
usage: python -m assembler.new name=NAME from=NAME [out=DIR] [config=PATH]

  python -m assembler.new name=heron from=qwen3
  python -m assembler.new name=heron from=llama config=path/to/config.json out=../heron

hydra.searchpath=[DIR] names more folders with conf/ and weight_maps/.
"""


class _Named(Options):
    """What to begin."""

    name: str | None = Field(None, description="of the architecture: small letters, digits and _")
    out: str | None = Field(None, description="folder to write; null: ./NAME")
    config: str | None = Field(
        None, description="config.json to begin with; null: transformers' default for that type"
    )


# `from` is a word of Python's, so no class body can have a field of that name.
_FROM = Field(None, description="the conf that it inherits from, e.g. llama")
NewOptions = create_model("NewOptions", __base__=_Named, **{"from": (str | None, _FROM)})


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(NewOptions)}")
        return 0
    arguments = parse_arguments(argv, NewOptions)
    options = NewOptions(**arguments.values[0])
    parent = getattr(options, "from")
    if not options.name or not parent:
        raise OptionError("a name and what it inherits from are wanted: name=heron from=qwen3")
    if arguments.overrides:
        raise OptionError(f"{', '.join(arguments.overrides)}: write it into the new conf")
    files = new_architecture(
        options.name,
        parent,
        options.out,
        config=options.config,
        search_path=arguments.search_path,
    )
    print("\n".join(map(str, files)))
    print(f"next: cd {files[0].parent} && python -m pytest")
    return 0


def new_architecture(
    name: str,
    parent: str,
    out: str | Path | None = None,
    *,
    config: str | Path | None = None,
    search_path: Sequence[str | Path] = (),
) -> tuple[Path, ...]:
    """Write a folder in which the architecture `name` begins as `parent`; the files written.

    Args:
        name: of the architecture: small letters, digits and _.
        parent: the name of the conf that it inherits from.
        out: the folder to write; None: ./<name>.
        config: the config.json to begin with; None: transformers' default for the parent's type.
        search_path: more folders that hold conf/ and weight_maps/.

    Raises:
        AssemblerError: the name is taken, the folder is not empty, there is no such parent, or no
            config for it.
    """
    from assembler.starting.folder import write_start

    folder = Path(name if out is None else out)
    path = None if config is None else Path(config).expanduser()
    return write_start(name, parent, folder, config=path, search_path=search_path)


if __name__ == "__main__":
    run_command(main)
