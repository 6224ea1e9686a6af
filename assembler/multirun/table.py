"""The results of several runs side by side: in a terminal, and as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assembler.errors import OptionError
from assembler.multirun.runs import Result, chosen, is_number

MOST_COLUMNS = 8  # of results in a terminal; the CSV has all


def print_table(results: Sequence[Result], columns: Sequence[str]) -> None:
    """Print one row a run: the swept keys, then `columns`, then what went wrong."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    chosen(results, columns)
    shown = columns[:MOST_COLUMNS]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for key in results[0].run.values:
        table.add_column(key, style="bold")
    for name in shown:
        numeric = all(is_number(r.values.get(name, 0)) for r in results)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    table.add_column("status")
    for result in results:
        cells = [text(result.values.get(name)) for name in shown]
        table.add_row(*result.run.values.values(), *cells, _status(result))
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False)
    console.print(table)
    if len(columns) > len(shown):
        rest = ", ".join(columns[len(shown) :])
        console.print(f"more differ: {rest}. columns=[...] chooses; csv=FILE has all", style="dim")


def check_csv(path: Path) -> None:
    """Refuse, before the runs, a file whose folder is not there.

    Raises:
        OptionError: it is not, or the path is itself a folder.
    """
    if not path.parent.is_dir():
        raise OptionError(f"csv={path}: cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise OptionError(f"csv={path}: cannot be written: it is a folder")


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Every result of every run; numbers as they are.

    Raises:
        OptionError: the file cannot be written.
    """
    keys = list(results[0].run.values)
    names = list(dict.fromkeys(name for result in results for name in result.values))
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*keys, *names, "status", "error"])
            for result in results:
                values = ["" if (v := result.values.get(name)) is None else v for name in names]
                row = [*result.run.values.values(), *values, result.status, result.error]
                writer.writerow(row)
    except OSError as error:
        raise OptionError(f"csv={path}: cannot be written: {error.strerror}") from error


def text(value: Any) -> str:
    """A value in few letters: `1,234,567`, `0.0123`, `yes`."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _status(result: Result) -> str:
    refused = next((v for k, v in result.values.items() if k.split(".")[-1] == "refused" and v), "")
    return result.error or refused or ("ok" if result.status == 0 else f"status {result.status}")
