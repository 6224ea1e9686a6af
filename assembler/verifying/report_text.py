"""A `VerifyReport` in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from assembler.verifying.report import Compared, Difference, VerifyReport

_MOST_INSIDE = 12


def report_lines(report: VerifyReport, tolerance: float) -> Iterator[str]:
    """The report, line by line; the last one says PASS or FAIL."""
    yield f"{report.conf} beside {report.against}, weights of {report.checkpoint}"
    yield f"  logits       {_compared(report.dense)}"
    if report.paged is not None:
        yield f"  paged        {_compared(report.paged)}"
    if report.difference is not None:
        yield ""
        yield from _difference(report.difference, tolerance)
    for note in report.notes:
        yield f"  note: {note}"
    yield "PASS" if report.passed else "FAIL"


def _compared(compared: Compared) -> str:
    verdict = "" if compared.passed else ": too much"
    return (
        f"max |difference| {_number(compared.error)} at std {compared.std:.3g}, "
        f"allowed {_number(compared.bound)}{verdict}"
    )


def _difference(found: Difference, tolerance: float) -> Iterator[str]:
    what = f"{found.place} ({found.block})" if found.block else found.place
    yield f"first difference: {what}, {found.where}"
    given = (
        "" if found.input_error is None else f"; its input: {_off(found.input_error, tolerance)}"
    )
    yield f"  output       {_off(found.error, tolerance)}{given}"
    if found.alone_error is not None:
        yield f"  by itself    on the reference's input {_off(found.alone_error, tolerance)}"
    if found.equation:
        yield f"  equation     {found.equation} ({found.equation_where})"
    if found.module:
        yield f"  reference    {found.module} ({found.module_class})"
    if found.kind == "wiring":
        yield from _wiring(found)
        return
    yield from _causes(found)
    for inside in found.inside[:_MOST_INSIDE]:
        yield f"  inside       {inside.name} = {inside.module}: {_off(inside.error, tolerance)}"


def _wiring(found: Difference) -> Iterator[str]:
    if found.block:
        yield "  cause        the block is right, but it is given something else: see the equation"
        name = f"{found.place.rpartition('.')[2]}(...)"
        place = f"the reference gives it {found.reference_wiring}"
        missing = f"the reference gives {name} no sum of what the blocks of this layer give"
    else:
        yield "  cause        the blocks agree, as far as they can be compared: see the equation"
        place = f"the reference has {found.reference_wiring}"
        missing = "the reference has no sum of what the blocks give"
    yield f"  wiring       {place if found.reference_wiring else missing}"
    if found.uncompared:
        names = ", ".join(found.uncompared)
        yield f"  not compared {names}: the reference shows no output of theirs alone"


def _causes(found: Difference) -> Iterator[str]:
    if not found.causes:
        yield f"  cause        none of the {found.tried} changes that were tried makes it equal"
        return
    together = len(found.causes) > 1 and found.causes[0].error > 10 * found.causes[1].error
    first, *others = found.causes
    for number, cause in enumerate((first, *others)):
        word = "cause       " if number == 0 else "and         " if together else "or          "
        yield f"  {word} {cause.change}, instead of {cause.instead_of} ({cause.where})"
    yield f"               makes it equal: off by {_number(found.causes[-1].error)}"


def _off(error: float, tolerance: float) -> str:
    return "equal" if error <= tolerance else f"off by {_number(error)}"


def _number(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "not a finite number"
