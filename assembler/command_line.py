"""The `key=value` command line all commands share, on top of Hydra's override grammar.

A command declares its keys as pydantic models. Keys below `conf.` are Hydra overrides of the model
and are handed on as they are; `hydra.searchpath=[...]` names more folders with conf/ and
weight_maps/. A text option (a prompt, a path) takes what follows the `=` literally: no quoting,
no escapes, no type guessing. Nothing here imports torch, so `--help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from assembler.errors import AssemblerError, OptionError, did_you_mean

_OVERRIDE_PREFIXES = ("conf.", "+conf.", "++conf.", "~conf.")
_SEARCH_PATH = "hydra.searchpath"


@dataclass(frozen=True)
class Verbatim:
    """Marks a text option (in `Annotated`) for which `null` is a word like any other."""


@dataclass(frozen=True)
class Arguments:
    """What was on the command line, sorted by who reads it."""

    values: tuple[dict[str, Any], ...]  # one mapping for each model given to `parse_arguments`
    overrides: tuple[str, ...] = ()  # Hydra overrides below conf.
    search_path: tuple[str, ...] = field(default=())


def parse_arguments(argv: Sequence[str], *models: type[BaseModel]) -> Arguments:
    """Sort `argv` into values for `models`, Hydra overrides and search path.

    Raises:
        OptionError: listing every argument that is not understood.
    """
    owners = {name: number for number, m in enumerate(models) for name in m.model_fields}
    values: tuple[dict[str, Any], ...] = tuple({} for _ in models)
    overrides: list[str] = []
    search_path: tuple[str, ...] = ()
    findings: list[str] = []
    for argument in argv:
        key, equals, text = argument.partition("=")
        if key.startswith(_OVERRIDE_PREFIXES):
            overrides.append(argument)
        elif not equals:
            findings.append(_not_a_pair(argument))
        elif key == _SEARCH_PATH:
            search_path = _search_path(text, findings)
        elif key not in owners:
            hint = did_you_mean(key, [*owners, "conf.", _SEARCH_PATH])
            if "." in key and not hint:
                hint = f" Fields of the model begin with conf.: conf.{key}"
            findings.append(f"unknown option '{key}'.{hint} --help lists all of them")
        elif key in values[owners[key]]:
            findings.append(f"'{key}' is given twice")
        else:
            info = models[owners[key]].model_fields[key]
            try:
                values[owners[key]][key] = _value(text, info)
            except OptionError as error:
                findings.append(f"{argument}: {error}")
    if findings:
        raise OptionError("\n".join(findings))
    return Arguments(values, tuple(overrides), search_path)


def _not_a_pair(argument: str) -> str:
    return f"'{argument}' is no key=value pair; --help lists the keys"


def verbatim_fields(model: type[BaseModel]) -> list[str]:
    """The options whose text is taken as it is."""
    return [name for name, info in model.model_fields.items() if _is_verbatim(info)]


def _search_path(text: str, findings: list[str]) -> tuple[str, ...]:
    value = _grammar(text)
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not Path(str(entry).removeprefix("file://")).expanduser().is_dir():
            findings.append(f"{_SEARCH_PATH} names '{entry}', which is not a folder")
    return tuple(map(str, entries))


def _value(text: str, info: FieldInfo) -> Any:
    """`text` as a value for a field; text fields take it literally."""
    takes = _members(info.annotation)
    lists = [member for member in takes if typing.get_origin(member) is tuple]
    if _is_verbatim(info):
        return text
    if lists and text.startswith("[") and text.endswith("]"):
        return _grammar(text)
    if text in ("null", "None") and type(None) in takes:
        return None  # the second is Python's word for it
    if str in takes:
        alternatives = {"null": type(None), "true": bool, "false": bool}
        return _grammar(text) if alternatives.get(text.lower()) in takes else text
    if lists:  # of one item
        of_texts = _members(typing.get_args(lists[0])[0]) == [str]
        return (text if of_texts else _grammar(text),)
    return _grammar(text)


def _is_verbatim(info: FieldInfo) -> bool:
    return any(isinstance(mark, Verbatim) for mark in info.metadata)


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, with Literal["a", ...] counted as text."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [m for a in typing.get_args(annotation) for m in _members(a)]
    if typing.get_origin(annotation) is typing.Literal:
        return [type(value) for value in typing.get_args(annotation)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [annotation]


def _grammar(text: str) -> Any:
    """The value Hydra's override grammar gives `text`: numbers, booleans, null, lists, strings."""
    if text.isascii() and text.isdigit() and not text.startswith("0"):
        return int(text)  # without importing Hydra, which takes a tenth of a second
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"value={text}")
    except HydraException:
        raise OptionError(f"'{text}' is not a value Hydra's grammar knows") from None
    if override.is_sweep_override():
        raise OptionError("is a sweep: -m runs the command for each value; a list is [...]")
    return override.value()


def describe_options(
    model: type[BaseModel],
    leave_out: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """The help text of a model's keys: name, default and meaning, one a line.

    Keys of the class itself come before those it inherits. `defaults` are those of the command
    where they are not the model's.
    """
    rows = []
    own_first = sorted(model.model_fields.items(), key=lambda f: f[0] not in model.__annotations__)
    for name, info in own_first:
        if name not in leave_out:
            default = _shown(defaults[name]) if name in (defaults or {}) else _default(info)
            rows.append((f"{name}={default}", info.description or ""))
    width = min(34, max(len(row[0]) for row in rows))
    return "\n".join(f"  {key:<{width}}  {text}".rstrip() for key, text in rows)


def _default(info: FieldInfo) -> str:
    """What the help shows behind the `=` of an option."""
    if _is_verbatim(info):
        return "TEXT"
    return "required" if info.is_required() else _shown(info.get_default())


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> None:
    """Run a command's `main` and leave the process with its exit status.

    With `-m` or `--multirun` it runs for every combination of the values given, and their results
    are put into one table.

    A user's mistake is printed as one message without a traceback; status 2 says that the command
    could not do its work, 1 is for the command itself (findings), 130 an interrupt.
    """
    atexit.register(_leave_garbage)
    sys.stdout.reconfigure(errors="replace")  # what the terminal's encoding lacks becomes a ?
    argv = sys.argv[1:] if argv is None else argv
    try:
        status = _run_many(main, argv) if {"-m", "--multirun"} & {*argv} else main(argv)
        sys.stdout.flush()
    except AssemblerError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader (head, less) has gone
        sys.stderr.close()
        status = 141
    sys.exit(status)


def _run_many(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    from assembler.multirun.runs import multirun

    return multirun(main, argv)


def _leave_garbage() -> None:
    """What is there at the end need not be looked through for cycles: with torch that takes long.

    Only triton's bindings complain about what they then find (torch imports it here and there).
    """
    if "triton" not in sys.modules:
        gc.freeze()
