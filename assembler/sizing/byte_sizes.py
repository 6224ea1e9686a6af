"""Sizes of memory as people write and read them: `80GiB`."""

from __future__ import annotations

import re

_FACTORS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """`80GiB` (1024^3), `80GB` (1000^3) or a plain number of bytes.

    Raises:
        ValueError: it is no size, or nothing.
    """
    found = _SIZE.fullmatch(text)
    if found is None or found[2].upper() not in _FACTORS:
        raise ValueError("a size is wanted, such as 80GiB, 24GB or a number of bytes")
    size = int(float(found[1]) * _FACTORS[found[2].upper()])
    if size < 1 << 20 and not found[2]:
        raise ValueError(f"{size} bytes; a unit is missing: {found[1]}GiB")
    if size == 0:
        raise ValueError("a size of nothing")
    return size


def format_gib(count: float) -> str:
    """`12.3 GiB`, or in the largest smaller unit that leaves a number of 1 or more."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"
