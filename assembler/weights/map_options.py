"""The options of a rule, one reader each: what the YAML says becomes a checked value.

The schema that editors use (`map_schema`) lists the same options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from assembler.errors import WeightMapError, did_you_mean
from assembler.weights.ops import Op, RopeOrder
from assembler.weights.quantization import Scheme, parse_scheme
from assembler.weights.rearrange import Rearrangement, parse_rearrangement
from assembler.weights.value_ops import Affine, NegativeExp

ParameterType = Literal["float64", "float32", "float16", "bfloat16"]

PER_WORDS = ("head", "kv_head", "row")
ROPE_KEYS = ("order", "parts", "heads", "dims", "partial", "at")
ROPE_ENDS = ("start", "end")
AFFINE_KEYS = ("scale", "offset")
REARRANGE_KEYS = ("pattern", "sizes")


@dataclass(frozen=True)
class RuleText:
    """A rule as it stands in the YAML, with the scopes around it already applied."""

    target: str
    value: Any  # None deletes an inherited rule
    scope: str  # joined before every source name
    where: str


def rule_error(text: RuleText, message: str) -> WeightMapError:
    """An error that begins with file, line and target."""
    return WeightMapError(f"{text.where}: {text.target}: {message}")


@dataclass(frozen=True)
class RopeOption:
    """Which rows of which heads change their rotary order."""

    order: RopeOrder
    parts: tuple[str, ...] = ()  # (): all that the source holds
    heads: int | None = None  # None: as the model declares the part
    dims: int | None = None  # rows of a head that rotate; None: see `partial`
    partial: float = 1.0  # the share of a head that rotates
    at_end: bool = False  # the last rows of a head rotate instead of its first


def read_names(value: Any, key: str, text: RuleText) -> tuple[str, ...]:
    """A list of different names such as [q, k, v]."""
    if not isinstance(value, list) or not value or not all(isinstance(p, str) for p in value):
        what = "part names such as [q, k, v]" if key != "split" else "targets that share the tensor"
        raise rule_error(text, f"'{key}' is a list of {what}, not {value!r}")
    if len(set(value)) < len(value):
        raise rule_error(text, f"'{key}' names one part twice: {value}")
    return tuple(value)


def read_per(value: Any, key: str, text: RuleText) -> str | int:
    """A word of `PER_WORDS` or a number of blocks."""
    if value in PER_WORDS or (_is_int(value) and value > 0):
        return value
    hint = did_you_mean(str(value), PER_WORDS)
    words = ", ".join(PER_WORDS)
    raise rule_error(text, f"'per' is {words} or a number of blocks, not {value!r}.{hint}")


def read_flag(value: Any, key: str, text: RuleText) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise rule_error(text, f"'{key}' is true or false, not {value!r}")
    return value


def read_number(value: Any, key: str, text: RuleText) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise rule_error(text, f"'{key}' is a number, not {value!r}")
    return float(value)


def read_row(value: Any, key: str, text: RuleText) -> int:
    """The row that a slice starts at, from 0."""
    if not _is_int(value) or value < 0:
        raise rule_error(text, f"'{key}' is the first row to take, from 0, not {value!r}")
    return value


def read_wildcard(value: Any, key: str, text: RuleText) -> str:
    """The name of a wildcard, without its braces."""
    if not isinstance(value, str) or not value.isidentifier():
        raise rule_error(
            text, f"'{key}' is the name of a wildcard, e.g. e for {{e}}, not {value!r}"
        )
    return value


def read_type(value: Any, key: str, text: RuleText) -> ParameterType:
    """The type that a parameter keeps whatever the model is loaded in."""
    return _word(value, key, get_args(ParameterType), text)


def read_rope(value: Any, key: str, text: RuleText) -> RopeOption:
    """An order, or a mapping with `order` and the rows it concerns."""
    orders = get_args(RopeOrder)
    if not isinstance(value, dict):
        return RopeOption(_word(value, key, orders, text))
    known = _mapping(value, key, ROPE_KEYS, "order", text)
    for name in ("heads", "dims"):
        if name in known and (not _is_int(known[name]) or known[name] < 1):
            raise rule_error(text, f"'{name}' of 'rope' is a count, not {known[name]!r}")
    if "dims" in known and "partial" in known:
        raise rule_error(text, "'rope' takes 'dims' or 'partial', not both")
    partial = read_number(known.get("partial", 1.0), "partial", text)
    if not 0 < partial <= 1:
        raise rule_error(text, f"'partial' of 'rope' is a share of the head, not {partial:g}")
    return RopeOption(
        order=_word(known["order"], "order", orders, text),
        parts=read_names(known["parts"], "parts", text) if "parts" in known else (),
        heads=known.get("heads"),
        dims=known.get("dims"),
        partial=partial,
        at_end=_word(known.get("at", "start"), "at", ROPE_ENDS, text) == "end",
    )


def read_rearrange(value: Any, key: str, text: RuleText) -> Rearrangement:
    """A pattern, or a mapping with `pattern` and `sizes`."""
    known = {"pattern": value}
    if isinstance(value, dict):
        known = _mapping(value, key, REARRANGE_KEYS, "pattern", text)
    sizes = known.get("sizes", {})
    if not isinstance(sizes, dict) or not all(_is_int(n) and n > 0 for n in sizes.values()):
        raise rule_error(text, f"'sizes' of 'rearrange' gives axes a count, not {sizes!r}")
    if not isinstance(known["pattern"], str):
        pattern = known["pattern"]
        raise rule_error(
            text, f"'rearrange' is a pattern such as '(e i) h -> e h i', not {pattern!r}"
        )
    try:
        return parse_rearrangement(known["pattern"], sizes)
    except ValueError as problem:
        raise rule_error(text, f"'rearrange': {problem}") from None


def read_affine(value: Any, key: str, text: RuleText) -> Op:
    """A mapping with `scale`, `offset` or both."""
    if not isinstance(value, dict) or not value:
        raise rule_error(text, f"'affine' is a mapping with scale, offset or both, not {value!r}")
    known = _mapping(value, key, AFFINE_KEYS, None, text)
    numbers = {name: read_number(number, name, text) for name, number in known.items()}
    if numbers.get("scale") == 0:
        raise rule_error(text, "'scale' of 'affine' cannot be 0: every value would be the same")
    return Affine(**numbers)


def read_dequantize(value: Any, key: str, text: RuleText) -> Scheme:
    """A format, or a mapping with `format` and the ends of its names."""
    return parse_scheme(value, lambda message: rule_error(text, f"'{key}': {message}"))


def read_negative_exp(value: Any, key: str, text: RuleText) -> Op | None:
    """true or false."""
    return NegativeExp() if read_flag(value, key, text) else None


# Options that one source may have. They act in this order, however they are written.
ITEM_READERS: dict[str, Callable[[Any, str, RuleText], Any]] = {
    "dequantize": read_dequantize,
    "unstack": read_wildcard,
    "transpose": read_flag,
    "rearrange": read_rearrange,
    "split": read_names,
    "slice": read_row,
    "parts": read_names,
    "per": read_per,
    "rope": read_rope,
    "pad": read_number,
    "affine": read_affine,
    "negative_exp": read_negative_exp,
}


def _mapping(
    value: Mapping[str, Any], key: str, known: tuple[str, ...], needed: str | None, text: RuleText
) -> dict[str, Any]:
    for name in value:
        if name not in known:
            rest = f"it has {', '.join(known)}.{did_you_mean(name, known)}"
            raise rule_error(text, f"unknown option '{name}' of '{key}'; {rest}")
    if needed is not None and needed not in value:
        raise rule_error(text, f"'{key}' needs '{needed}'")
    return dict(value)


def _word(value: Any, key: str, known: tuple[str, ...], text: RuleText) -> Any:
    if value in known:
        return value
    words = " or ".join([", ".join(known[:-1]), known[-1]])
    raise rule_error(text, f"'{key}' is {words}, not {value!r}.{did_you_mean(str(value), known)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
