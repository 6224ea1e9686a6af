"""Draws a coverage report in a terminal."""

from __future__ import annotations

import re

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from assembler.weights.report import CoverageReport, Row, format_bytes

WIDTH = 100  # columns that a report may take
WIDEST_TARGET = 32


def render_report(report: CoverageReport) -> Group:
    """The report for a `rich` console: a title, the table, what is not in it, the last line."""
    parts: list[Text | Table] = [Text(report.title, style="bold"), _table(report)]
    parts += [Text(f"tied: {tie}", style="dim") for tie in report.ties]
    for names, reason, nbytes in report.ignored:
        parts.append(Text(f"ignored: {names} ({format_bytes(nbytes)}): {reason}", style="dim"))
    if report.writes_back is not None:
        losses = [f"not: {loss}" for loss in report.writes_back] or ["all"]
        parts += [Text(f"writes back: {line}", style="dim") for line in losses]
    parts += [Text(line, style=style) for line, style in _memory(report)]
    for finding in report.findings:
        style = "red" if finding.severity == "error" else "yellow"
        parts.append(Text(str(finding), style=style))
    parts.append(Text(report.summary, style="bold green" if report.complete else "bold red"))
    return Group(*parts)


def _memory(report: CoverageReport) -> list[tuple[str, str]]:
    """The weights of each rank, and a line about an imbalance, with their styles."""
    if report.memory is None:
        return []
    sizes = dict.fromkeys(map(format_bytes, report.memory.nbytes))
    many = "each" if len(sizes) == 1 else "in turn"
    shown = sizes if len(sizes) == 1 else map(format_bytes, report.memory.nbytes)
    lines = [(f"weights of {report.tp_size} ranks, {many}: {', '.join(shown)}", "dim")]
    if report.memory.warning:
        lines.append((f"imbalance: {report.memory.warning}", "yellow"))
    return lines


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


def _wrap(name: str, width: int) -> str:
    """A long name on several lines, broken after its dots and commas."""
    lines = [""]
    for piece in re.split(r"(?<=[.,])", name):
        if lines[-1].strip() and len(lines[-1]) + len(piece) > width:
            lines.append("  ")
        lines[-1] += piece
    return "\n".join(lines)
