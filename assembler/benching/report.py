"""Draws what was measured in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from assembler.benching.step_kernels import KernelTime, StepKernels
from assembler.benching.workloads import Measured, Spread

MOST_KERNELS = 16  # of a step that are shown one by one
_WIDEST_NAME = 60  # characters of a kernel's name


def render_workloads(measured: Sequence[Measured]) -> Group:
    """A row a workload."""
    headers = ("tokens/s", "median", "fastest", "first token ms (p99)", "between tokens ms (p99)")
    table = _table("workload", headers)
    for each in measured:
        table.add_row(
            each.name,
            f"{each.tokens_per_s:.1f}",
            f"{each.median:.3f}s",
            f"{each.fastest:.3f}s",
            _spread(each.first_token),
            _spread(each.between_tokens),
        )
    said = "decode: tokens after the first; prefill: up to the first token"
    return Group(table, Text(said, style="dim"))


def _spread(spread: Spread | None) -> str:
    return "–" if spread is None else f"{spread.median * 1e3:.2f} ({spread.p99 * 1e3:.2f})"


def render_kernels(step: StepKernels) -> Group:
    """A title, a row a kernel with its shapes, and what all that are not shown take."""
    total = sum(kernel.seconds for kernel in step.kernels)
    title = Text(f"{step.name}: {step.seconds * 1e3:.3f} ms", style="bold")
    title.append(f"; its kernels {total * 1e3:.3f} ms ({step.measured_by})", style="dim")
    table = _table("kernel", ("shape", "calls", "ms", "share", "GB/s", "GFLOP/s"))
    for kernel in step.kernels[:MOST_KERNELS]:
        table.add_row(*_cells(kernel, total))
    rest = step.kernels[MOST_KERNELS:]
    if rest:
        seconds, calls = sum(k.seconds for k in rest), sum(k.calls for k in rest)
        table.add_row(*_cells(KernelTime(f"{len(rest)} others", "", calls, seconds), total))
    return Group(title, table)


def _cells(kernel: KernelTime, total: float) -> list[str]:
    cost, seconds = kernel.cost, kernel.seconds
    rates = ["–", "–"] if cost is None else [cost.bytes / seconds, cost.flops / seconds]
    return [
        kernel.name[:_WIDEST_NAME],
        kernel.shape[:_WIDEST_NAME],
        f"{kernel.calls:g}",
        f"{seconds * 1e3:.3f}",
        f"{seconds / total:.1%}",
        *(rate if isinstance(rate, str) else f"{rate / 1e9:.1f}" for rate in rates),
    ]


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    return table
