"""`python -m assembler.bench checkpoint=...`: how fast a model runs here; random weights will do.

Three workloads, each measured several times after a warm-up: decoding one sequence, the prefill of
one prompt, and many requests at once; with the latency of their tokens. Then the kernels of a
prefill and of a decode, one by one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from assembler.benching.workloads import Workload, decode, measure, prefill, throughput
from assembler.command_line import Arguments, describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.errors import OptionError
from assembler.llm_options import LLMOptions

if TYPE_CHECKING:
    from rich.console import Group

    from assembler.llm import LLM

USAGE = """\
usage: python -m assembler.bench checkpoint=WHERE [conf=NAME] [key=value ...]

  python -m assembler.bench conf=smollm2 dtype=bfloat16
  python -m assembler.bench checkpoint=path/to/config.json load=dummy conf.layers.count=4
"""
# Said on the command line in its own way: conf.x=y, hydra.searchpath=[...], tp=N; or of no use.
_SAID_OTHERWISE = (
    "overrides",
    "search_path",
    "tensor_parallel_size",
    "enable_prefix_caching",
    "max_logprobs",
)


class BenchOptions(Options):
    """What to measure."""

    checkpoint: str | None = Field(
        None, description="folder, .gguf file, Hub id, or config.json with load=dummy"
    )
    rounds: int = Field(5, ge=1, description="measurements of each workload; medians are printed")
    requests: int = Field(32, ge=1, description="of the throughput workload")
    input_len: int = Field(256, ge=1, description="longest prompt of the throughput workload")
    output_len: int = Field(128, ge=1, description="longest output of the throughput workload")
    decode_len: int = Field(64, ge=2, description="tokens decoded to measure the latency")
    prefill_len: int = Field(512, ge=1, description="tokens of the prompt that is prefilled")
    tp: int = Field(1, ge=1, description="tensor-parallel ranks")
    kernels: bool = Field(
        True, description="then the kernels of a prefill of prefill_len and of a decode behind it"
    )
    format: Literal["table", "json"] = Field("table", description="table or json")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(
            f"{USAGE}\nWhat to measure:\n{describe_options(BenchOptions)}\n"
            f"\nModel and engine:\n{describe_options(LLMOptions, leave_out=_SAID_OTHERWISE)}"
        )
        return 0
    arguments = parse_arguments(argv, BenchOptions, LLMOptions)
    options = BenchOptions(**arguments.values[0])
    from assembler.benching.kernel_times import step_kernels
    from assembler.benching.report import render_kernels, render_workloads

    llm = _load(options, arguments)
    chosen = [workload for workload in workloads(options) if _fits(workload, llm)]
    if not chosen:
        raise OptionError(f"max_model_len={llm.engine.max_model_len} is too short for any workload")
    measured = [measure(llm, workload, options.rounds) for workload in chosen]
    if options.format == "table":
        _show(render_workloads(measured))
    steps = step_kernels(llm, options.prefill_len, options.rounds) if options.kernels else []
    if options.kernels and not steps:
        print("kernels: skipped, the model or its cache is too short", file=sys.stderr)
    if options.format == "table":
        _show(*map(render_kernels, steps))
        return 0
    found = {each.name: each.to_json() for each in measured}
    if options.kernels:
        found["kernels"] = [step.to_json() for step in steps]
    print(json.dumps(found, indent=2))
    return 0


def workloads(options: BenchOptions) -> list[Workload]:
    """What is measured."""
    return [
        decode(options.decode_len),
        prefill(options.prefill_len),
        throughput(options.requests, options.input_len, options.output_len),
    ]


def _load(options: BenchOptions, arguments: Arguments) -> LLM:
    from assembler.llm import LLM

    values = {"tensor_parallel_size": options.tp, **arguments.values[1]}
    values |= {"overrides": arguments.overrides, "search_path": arguments.search_path}
    # The same prompts come again in every round.
    return LLM(options.checkpoint, **{**values, "enable_prefix_caching": False})


def _fits(workload: Workload, llm: LLM) -> bool:
    """Whether the model is long enough; says on stderr if it is not."""
    longest = max(map(sum, workload.shapes))
    if longest <= llm.engine.max_model_len:
        return True
    print(f"{workload.name}: skipped, {longest} tokens are too many", file=sys.stderr)
    return False


def _show(*parts: Group) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    for part in parts:
        console.print(part)


if __name__ == "__main__":
    run_command(main)
