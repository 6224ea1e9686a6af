"""Numbers as people read them: `8.19 B` parameters, `4096 × 12288`."""

from __future__ import annotations

from collections.abc import Sequence


def short_count(count: float) -> str:
    """Three digits and a unit: `494 M`, `8.19 B`, `96`."""
    if count < 1000:
        return f"{count:.0f}"
    units = iter("kMBT")
    unit, count = next(units), count / 1000
    while count >= 999.5 and unit != "T":
        unit, count = next(units), count / 1000
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f} {unit}"


def shape_text(shape: Sequence[int]) -> str:
    """`4096 × 12288`; a single number has no sides."""
    return " × ".join(map(str, shape)) or "1"


def percent(part: float, whole: float) -> str:
    """`62.4 %`; what is there at all is never 0."""
    share = 100 * part / whole if whole else 0.0
    return "< 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"
