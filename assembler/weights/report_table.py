"""Draws a coverage report in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from assembler.weights.finding import Finding
from assembler.weights.report import CoverageReport, Row, format_bytes
from assembler.weights.tp_overview import SizeRow, SizesOverview

WIDTH = 100  # columns that a report may take
WIDEST_TARGET = 32
MOST_OF_NAMES = 3 * WIDTH  # letters


def render_report(report: CoverageReport) -> Group:
    """The report for a `rich` console: a title, the table, what is not in it, the last line."""
    parts: list[Text | Table] = [Text(report.title, style="bold"), _table(report)]
    parts += [Text(f"tied: {tie}", style="dim") for tie in report.ties]
    for names, reason, nbytes in report.ignored:
        line = f"ignored: {_shortened(names)} ({format_bytes(nbytes)}): {reason}"
        parts.append(Text(line, style="dim"))
    if report.writes_back is not None:
        losses = [f"not: {loss}" for loss in report.writes_back] or ["all"]
        parts += [Text(f"writes back: {line}", style="dim") for line in losses]
    for line in report.memory_lines:
        parts.append(Text(line, style="yellow" if line.startswith("imbalance") else "dim"))
    parts += [*_findings(report.findings), _last_line(report.summary, report.complete)]
    return Group(*parts)


def render_overview(overview: SizesOverview) -> Group:
    """The overview over several sizes for a `rich` console."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for header in ("tp", "works", "weights of a rank", "fullest rank"):
        table.add_column(header, no_wrap=True)
    for row in overview.rows:
        works = "yes" if row.works else "refused" if row.refusals else "findings"
        several = row.memory is not None and row.tp_size > 1
        fullest = f"{row.memory.imbalance:.2f} × the mean" if several else ""
        table.add_row(str(row.tp_size), works, row.weights, fullest)
    parts: list[Text | Table] = [Text(overview.title, style="bold"), table]
    for row in overview.rows:
        parts += [Text(f"tp={row.tp_size}: {line}", style=style) for line, style in _of_size(row)]
    parts += [Text(f"split by {kind}: {names}", style="dim") for kind, names in overview.splits]
    if overview.whole:
        size = format_bytes(overview.whole_nbytes)
        parts.append(Text(f"whole on every rank: {overview.whole} ({size})", style="dim"))
    last = _last_line(overview.summary, overview.complete)
    return Group(*parts, *_findings(overview.findings), last)


def _of_size(row: SizeRow) -> Iterator[tuple[str, str]]:
    """What is to be known of one size, line by line with a style."""
    if row.memory is not None and row.memory.warning:
        yield f"imbalance: {row.memory.warning}", "yellow"
    yield from ((f"replicated: {copy}", "dim") for copy in row.copies)
    yield from ((f"cannot work: {refusal}", "bold red") for refusal in row.refusals)


def _findings(findings: Iterable[Finding]) -> Iterator[Text]:
    for finding in findings:
        yield Text(str(finding), style="red" if finding.severity == "error" else "yellow")


def _last_line(summary: str, complete: bool) -> Text:
    return Text(summary, style="bold green" if complete else "bold red")


def _table(report: CoverageReport) -> Table:
    headers = ["shape", "dtype", "bytes"] + [f"tp={report.tp_size}"] * (report.tp_size > 1)
    facts = [_facts(row, len(headers)) for row in report.rows]
    taken = sum(max(map(len, column)) for column in zip(headers, *facts, strict=True))
    targets = [_wrap(row.target, WIDEST_TARGET) for row in report.rows]
    target_width = max([len(line) for text in targets for line in text.splitlines()], default=0)
    gaps = len(headers) + 6
    source_width = WIDTH - taken - max(target_width, len("parameter")) - gaps
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("parameter", overflow="fold", style="cyan")
    table.add_column("← tensors on disk", overflow="fold")
    for header in headers:
        table.add_column(header, no_wrap=True, justify="right" if header == "bytes" else "left")
    for row, target, columns in zip(report.rows, targets, facts, strict=True):
        sources = _wrap(row.sources, source_width) + "".join(f"\n  {op}" for op in row.ops)
        table.add_row(Text(target), Text(sources), *map(Text, columns))
    return table


def _facts(row: Row, count: int) -> list[str]:
    shape = "×".join(map(str, row.shape)) or "1"
    return [shape, row.dtype, format_bytes(row.nbytes), row.split or "whole"][:count]


def _shortened(names: str) -> str:
    """The beginning of names that would fill the terminal (an image encoder has hundreds)."""
    if len(names) <= MOST_OF_NAMES:
        return names
    return f"{names[:MOST_OF_NAMES].rpartition(',')[0]},... (all: format=json)"


def _wrap(name: str, width: int) -> str:
    """A long name on several lines, broken after its dots and commas."""
    lines = [""]
    for piece in re.split(r"(?<=[.,])", name):
        if lines[-1].strip() and len(lines[-1]) + len(piece) > width:
            lines.append("  ")
        lines[-1] += piece
    return "\n".join(lines)
