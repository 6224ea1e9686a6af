"""A picture of the results of several runs: one panel a column over the swept values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assembler.errors import OptionError
from assembler.multirun.runs import Result, chosen, is_number

MOST_PANELS = 6
_FORMATS = (".svg", ".png", ".pdf")


def check_format(path: Path) -> None:
    """Refuse an ending of which no picture is made.

    Raises:
        OptionError: naming those that there are.
    """
    if path.suffix not in _FORMATS:
        raise OptionError(f"plot={path}: the name should end in {', '.join(_FORMATS)}")


def write_plot(path: Path, results: Sequence[Result], columns: Sequence[str]) -> None:
    """Draw the columns that are numbers: the key with most values along, one line for each
    combination of the others.

    Raises:
        OptionError: there is nothing to draw, matplotlib is missing, or the file cannot be written.
    """
    check_format(path)
    chosen(results, columns)
    drawn = [n for n in columns if any(is_number(r.values.get(n)) for r in results)][:MOST_PANELS]
    if not drawn:
        raise OptionError(
            "plot: no column that differs is a number; choose some with columns=[...]"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError(
            "plot needs matplotlib: pip install 'model-assembler[plot]' (csv=FILE needs nothing)"
        ) from error
    along = _along(results)
    figure = Figure(figsize=(6, 1 + 2.4 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for panel, name in zip(panels, drawn, strict=True):
        for label, points in _lines(results, along, name).items():
            panel.plot([x for x, _ in points], [y for _, y in points], marker="o", label=label)
        panel.set(xlabel=along, ylabel=name)
        panel.grid(alpha=0.3)
        if len(results[0].run.values) > 1:
            panel.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise OptionError(f"plot={path}: cannot be written: {error.strerror}") from error


def _along(results: Sequence[Result]) -> str:
    """The swept key with the most values; of equals the first."""
    counts = {key: len({r.run.values[key] for r in results}) for key in results[0].run.values}
    return max(counts, key=lambda key: counts[key])


def _lines(results: Sequence[Result], along: str, name: str) -> dict[str, list[tuple[Any, float]]]:
    """(x, y) of each line; x is a number where all are numbers, else the value's text."""
    xs = [_number(r.run.values[along]) for r in results]
    numeric = all(x is not None for x in xs)
    lines: dict[str, list[tuple[Any, float]]] = {}
    for result, x in zip(results, xs, strict=True):
        others = {k: v for k, v in result.run.values.items() if k != along}
        label = ", ".join(f"{k}={v}" for k, v in others.items())
        y = result.values.get(name)
        if is_number(y):
            lines.setdefault(label, []).append((x if numeric else result.run.values[along], y))
    return lines


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
