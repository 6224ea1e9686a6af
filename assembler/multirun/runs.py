"""Runs a command for every combination of swept values, and gathers what each of them says."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from assembler.command_line import parse_arguments, verbatim_fields
from assembler.engine.options import Options
from assembler.errors import AssemblerError, OptionError
from assembler.multirun.sweeps import Run, expand_sweeps

FLAGS = ("-m", "--multirun")
_TEXT = "output"  # the column of a command that has no JSON
_LONG = 60  # letters of a text that is no column by itself


class MultirunOptions(Options):
    """What becomes of the results."""

    columns: Annotated[tuple[str, ...], BeforeValidator(tuple)] = Field(
        (), description="results to show, by their names in the JSON; []: those that differ"
    )
    csv: str | None = Field(None, description="file for the whole table")
    plot: str | None = Field(None, description="file (.svg, .png) for a picture of the columns")


@dataclass(frozen=True)
class Result:
    """What one run said."""

    run: Run
    status: int
    values: Mapping[str, Any]  # flat: {"sizes.weights": 17, ...}
    error: str = ""


def multirun(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run `main` over all combinations in `argv`; returns the largest exit status.

    Progress goes to stderr, the table to stdout.

    Raises:
        OptionError: nothing is swept, a column is not there, or a file cannot be written.
    """
    from assembler.multirun.table import check_csv, print_table, write_csv

    own, others = _own_options(argv)
    if own.plot:
        from assembler.multirun.plot import check_format

        check_format(Path(own.plot))  # before the runs, which may take long
    if own.csv:
        check_csv(Path(own.csv))
    models = _models_of(main)
    runs = expand_sweeps(others, {name for model in models for name in verbatim_fields(model)})
    has_json = any("format" in model.model_fields for model in models)
    results = []
    for number, run in enumerate(runs, 1):
        said = " ".join(f"{key}={value}" for key, value in run.values.items())
        print(f"[{number}/{len(runs)}] {said}", file=sys.stderr)
        results.append(_result(main, run, has_json))
    differ = differing(results)
    try:
        print_table(results, own.columns or differ)
    except OptionError:  # what was asked for is not there; what has been computed still is
        print_table(results, differ)
        raise
    finally:
        if own.csv:
            write_csv(Path(own.csv), results)
    if own.plot:
        from assembler.multirun.plot import write_plot

        write_plot(Path(own.plot), results, own.columns or differ)
    return max(result.status for result in results)


def _own_options(argv: Sequence[str]) -> tuple[MultirunOptions, list[str]]:
    """The options of the table, and the other arguments."""
    mine = [a for a in argv if a.partition("=")[0] in MultirunOptions.model_fields]
    values = parse_arguments(mine, MultirunOptions).values[0]
    return MultirunOptions(**values), [a for a in argv if a not in mine and a not in FLAGS]


def _models_of(main: Callable[..., Any]) -> list[type[Options]]:
    """The options of a command: the models that its module defines or imports."""
    found = vars(sys.modules[main.__module__]).values()
    return [model for model in found if isinstance(model, type) and issubclass(model, Options)]


def _result(main: Callable[[Sequence[str]], int], run: Run, has_json: bool) -> Result:
    argv = [*run.argv, "format=json"] if has_json else [*run.argv]
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            status = main(argv)
    except AssemblerError as error:
        message = next((line for line in str(error).splitlines() if line.strip()), "failed")
        print(f"error: {error}", file=sys.stderr)
        return Result(run, 2, {}, message)
    said = text.getvalue()
    values = dict(_flat(json.loads(said))) if has_json and said else {_TEXT: said.strip()}
    return Result(run, status, values)


def _flat(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of JSON data by their dotted paths.

    A list is its length; one of a single mapping with numbers (the one size that was asked for) is
    that mapping.
    """
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], Mapping):
        data = data[0] if any(map(is_number, data[0].values())) else data
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, len(data) if isinstance(data, list) else data


def differing(results: Sequence[Result]) -> tuple[str, ...]:
    """The names of values that are not the same in all runs, numbers first.

    Long texts, and what only repeats a swept value, are not among them.
    """
    names = dict.fromkeys(name for result in results for name in result.values)
    found: dict[str, list[Any]] = {}
    for name in names:
        values = [result.values.get(name) for result in results if not result.error]
        is_long = name != _TEXT and any(len(str(value)) > _LONG for value in values)
        if len({*map(repr, values)}) > 1 and not is_long and not _repeats(name, results):
            found[name] = values
    return tuple(sorted(found, key=lambda name: not all(map(is_number, found[name]))))


def _repeats(name: str, results: Sequence[Result]) -> bool:
    """Whether a value is, in every run, that of one of the swept keys."""
    good = [result for result in results if not result.error]
    return any(
        all(str(result.values.get(name)) == result.run.values[key] for result in good)
        for key in results[0].run.values
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def chosen(results: Sequence[Result], columns: Sequence[str]) -> None:
    """Refuse columns that no run has.

    Raises:
        OptionError: naming those that there are.
    """
    from assembler.errors import did_you_mean

    names = dict.fromkeys(name for result in results for name in result.values)
    missing = [name for name in columns if name not in names]
    if missing and names:
        hints = "; ".join(f"'{name}'{did_you_mean(name, names)}" for name in missing)
        raise OptionError(f"columns: no run has {hints}. There are: {', '.join(names)}")
