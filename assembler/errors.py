"""The errors a user meets, and the hint that goes with them.

Every one is a `ValueError`: the input is wrong, not the program (broken invariants are `assert`s).
A message says where (file and line where there is one), what is wrong, the nearest known name and
what to do. One error lists all the findings of its kind, one a line.

This module imports nothing of the package, so every layer may use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssemblerError(ValueError):
    """Base of every error raised for wrong user input."""


class SpecError(AssemblerError):
    """The model YAML (or an override of it) is wrong."""


class WiringError(SpecError):
    """A wiring equation is wrong."""


class WeightMapError(AssemblerError):
    """The weight-map YAML is wrong."""


class CheckpointError(AssemblerError):
    """A checkpoint is absent, damaged, or does not fit the model."""


class TokenizerError(AssemblerError):
    """Tokenizer files are absent or not understood."""


class OptionError(AssemblerError):
    """An option of a command, of `LLM` or of `SamplingParams` is unknown or out of range."""


class RankError(AssemblerError):
    """Another rank of a tensor-parallel model failed or died; its own error is the message."""


class RequestError(AssemblerError):
    """One request cannot be served; other requests are unaffected."""


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """Return " Did you mean 'x' or 'y'?" for the names nearest to `name`, or "" if none is near."""
    names = sorted(set(known))
    by_lower = {n.lower(): n for n in reversed(names)}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=most, cutoff=0.6)
    if not near:
        return ""
    return " Did you mean " + " or ".join(f"'{by_lower[n]}'" for n in near) + "?"
