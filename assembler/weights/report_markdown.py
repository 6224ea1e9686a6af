"""The coverage report as GitHub-flavoured Markdown, for an issue or the summary of a CI run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from assembler.weights.finding import Finding
from assembler.weights.report import CoverageReport, Row, format_bytes
from assembler.weights.tp_overview import SizeRow, SizesOverview

_SPECIAL = re.compile(r"([\\*_<>\[\]~&#|])")


def markdown_report(report: CoverageReport) -> str:
    """The report of one size; the same content as the table in a terminal."""
    lines = [f"### {escape(report.title)}", "", _verdict(report.summary, report.complete), ""]
    lines += _findings(report.findings)
    headers = ["parameter", "← tensors on disk", "on the way", "shape", "dtype", "bytes"]
    headers += [f"tp={report.tp_size}"] * (report.tp_size > 1)
    lines += _table(headers, (_row(row)[: len(headers)] for row in report.rows))
    lines += [f"- tied: {code(tie)}" for tie in report.ties]
    for names, reason, nbytes in report.ignored:
        lines.append(f"- ignored: {code(names)} ({format_bytes(nbytes)}): {escape(reason)}")
    if report.writes_back is not None:
        losses = [f"not: {escape(loss)}" for loss in report.writes_back] or ["all"]
        lines += [f"- writes back: {line}" for line in losses]
    lines += [f"- {escape(line)}" for line in report.memory_lines]
    return "\n".join(lines).rstrip() + "\n"


def markdown_overview(overview: SizesOverview) -> str:
    """The overview over several sizes."""
    lines = [f"### {escape(overview.title)}", "", _verdict(overview.summary, overview.complete), ""]
    lines += _findings(overview.findings)
    headers = ("tp", "works", "weights of a rank", "imbalance", "held several times")
    lines += _table(headers, map(_size_row, overview.rows))
    lines += [f"- split by {kind}: {code(names)}" for kind, names in overview.splits]
    if overview.whole:
        size = format_bytes(overview.whole_nbytes)
        lines.append(f"- whole on every rank: {code(overview.whole)} ({size})")
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Text in which nothing but its `code` is Markdown."""
    spans = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(
        span.replace("|", "\\|") if n % 2 else _SPECIAL.sub(r"\\\1", span).replace("`", "\\`")
        for n, span in enumerate(spans)
    )


def code(text: str) -> str:
    """Text as code, within or outside of a table."""
    escaped = text.replace("|", "\\|")
    if "`" in text:
        return f"`` {escaped} ``"  # the parser takes one space off at each end
    return f"`{escaped}`" if text else ""


def _verdict(summary: str, complete: bool) -> str:
    return f"{'✅' if complete else '❌'} **{escape(summary)}**"


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    if findings:
        headers = ("finding", "of", "what is wrong", "where")
        yield from _table(headers, map(_finding, findings))


def _finding(finding: Finding) -> list[str]:
    kind = f"note: {finding.kind}" if finding.severity == "note" else finding.kind
    hint = finding.hint.strip()
    message = f"{finding.message}. {hint}" if hint else finding.message
    return [escape(kind), code(finding.subject), escape(message), code(finding.where or "")]


def _row(row: Row) -> list[str]:
    shape = "×".join(map(str, row.shape)) or "1"
    ops = "<br>".join(escape(op) for op in row.ops)
    facts = [shape, row.dtype, format_bytes(row.nbytes), row.split or "whole"]
    return [code(row.target), code(row.sources), ops, *facts]


def _size_row(row: SizeRow) -> list[str]:
    works = "yes" if row.works else f"no: {row.errors} finding{'s' * (row.errors > 1)}"
    if row.refusals:
        works = "no: " + "<br>".join(escape(refusal) for refusal in row.refusals)
    imbalance = "" if row.memory is None else escape(row.memory.warning)
    copies = "<br>".join(escape(copy) for copy in row.copies)
    return [str(row.tp_size), works, row.weights, imbalance, copies]


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield f"| {' | '.join('---:' if h == 'bytes' else '---' for h in headers)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
