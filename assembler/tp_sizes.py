"""The option of commands that compare tensor-parallel sizes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ValueError("a number of ranks from 1 on, or a list of such, is wanted")
    return sizes


# One size stands for a list of one.
TPSizes = Annotated[tuple[int, ...], BeforeValidator(_sizes)]
