"""Running a command in this process, and what a refusal looks like."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]

# Of generate, on stderr: all that it says when all went well.
SUMMARY = re.compile(
    r"\d+ prompt \+ \d+ generated tokens, first after \d+\.\d\d s, [\d.]+ tokens/s, "
    r"ended by \d+ (length|stop)(, \d+ (length|stop))?\n"
)


class Result(NamedTuple):
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]  # (command module, *arguments) -> Result


def refused(result: Result, *patterns: str, status: int = 2) -> None:
    """A mistake ends in one message on stderr, and nothing else."""
    assert result.status == status and result.out == ""
    assert result.err.startswith("error: ") and "Traceback" not in result.err
    for pattern in patterns:
        assert re.search(pattern, result.err), (pattern, result.err)
