"""Which runs a command line with sweeps stands for: `conf.layers.count=2,4 dtype=choice(a,b)`."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from assembler.errors import OptionError


@dataclass(frozen=True)
class Run:
    """One of the runs."""

    argv: tuple[str, ...]  # of the command, with one value for each key
    values: dict[str, str]  # of the keys that are swept


def expand_sweeps(argv: Sequence[str], verbatim: Collection[str] = ()) -> tuple[Run, ...]:
    """Every combination of the swept values, the last key changing fastest.

    The grammar is Hydra's: `key=a,b`, `choice(a,b)`, `range(1,5)`, `glob(*)` is not among them.
    Values with commas of their own are quoted.

    Args:
        verbatim: keys whose text is taken as it is, and never swept (a prompt has commas).

    Raises:
        OptionError: nothing is swept, or a sweep is none that Hydra knows.
    """
    choices: list[list[tuple[str, str | None]]] = []  # of each argument: (text, its value if swept)
    for argument in argv:
        key, equals, text = argument.partition("=")
        values = _swept(key, text) if equals and key not in verbatim else None
        if values is None:
            choices.append([(argument, None)])
        else:
            choices.append([(f"{key}={value}", value) for value in values])
    if all(len(choice) == 1 and choice[0][1] is None for choice in choices):
        raise OptionError(
            "--multirun sweeps over values: give a key several of them, key=a,b or key=range(1,5)"
        )
    keys = [argument.partition("=")[0] for argument in argv]
    return tuple(
        Run(
            tuple(text for text, _ in run),
            {key: value for key, (_, value) in zip(keys, run, strict=True) if value is not None},
        )
        for run in itertools.product(*choices)
    )


def _swept(key: str, text: str) -> list[str] | None:
    """The values that Hydra's grammar sees in `text`; None where it is one value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:
        return None  # the command says what is wrong with it
    if not override.is_sweep_override():
        return None
    if isinstance(override.value(), Glob):
        raise OptionError(f"{key}={text}: glob has no files to choose from here; list the values")
    values = list(override.sweep_string_iterator())
    if not values:
        raise OptionError(f"{key}={text}: an empty sweep")
    return [_unquoted(value) for value in values]


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
