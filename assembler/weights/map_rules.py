"""One rule of a weight map: which tensors on disk fill one module or parameter, and through what.

A rule is written as a source name, a list of them (merged in the order of the target's parts), or a
mapping with `from` and the options below. What can be wrong with a rule on its own is found here,
when the map is read; what depends on the model is found by the planner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from assembler.blocks.parallel import ShardKind
from assembler.errors import WeightMapError, did_you_mean
from assembler.weights.ops import RopeOrder
from assembler.weights.pattern import Pattern, parse_pattern, parse_target

# The options of a rule. They act in this order, however they are written: transpose, then the
# split into `parts` (`per` says how they interleave), then rope.
RULE_KEYS = ("from", "parts", "per", "transpose", "rope", "optional")
ITEM_KEYS = ("from", "parts", "per", "transpose", "rope")
PER_WORDS = ("head", "kv_head")


@dataclass(frozen=True)
class Source:
    """One tensor name on the right side of a rule and what is done to it."""

    pattern: Pattern
    parts: tuple[str, ...] = ()  # the target's parts it holds, in its own order; (): the next one
    per: str | int | None = None  # blocks in which the parts repeat: "head", "kv_head", a count
    transpose: bool = False
    rope: RopeOrder | None = None


@dataclass(frozen=True)
class Rule:
    """Fills the module (all its leaves) or the one parameter that `target` names."""

    target: Pattern
    sources: tuple[Source, ...]
    optional: bool
    where: str  # file:line
    tp: ShardKind = "replicated"  # how the map says the target is split over ranks
    tp_where: str | None = None  # file:line of the `tp` entry, None if there is none

    def __str__(self) -> str:
        return f"{self.target} ← {', '.join(str(s.pattern) for s in self.sources)}"


@dataclass(frozen=True)
class RuleText:
    """A rule as it stands in the YAML, with the scopes around it already applied."""

    target: str
    value: Any  # None deletes an inherited rule
    scope: str  # joined before every source name
    where: str


def parse_rule(text: RuleText) -> Rule:
    """Turn the YAML of one rule into a `Rule`.

    Raises WeightMapError (with file and line) for unknown options, option values that make no
    sense, and wildcards that cannot work.
    """
    target = parse_target(text.target, text.where)
    options = text.value if isinstance(text.value, dict) else {"from": text.value}
    _check_keys(options, RULE_KEYS, text)
    names = options.get("from")
    items = names if isinstance(names, list) else [names]
    if not items:
        raise _error(text, "an empty list names no source")
    if len(items) > 1 and options.get("parts") is not None:
        raise _error(text, "'parts' splits one source; a list of sources is merged already")
    shared = {key: value for key, value in options.items() if key in ITEM_KEYS and key != "from"}
    sources = tuple(_parse_source(item, shared, text) for item in items)
    _check_wildcards(target, sources, text)
    optional = _flag(options.get("optional", False), "optional", text)
    return Rule(target, sources, optional, text.where)


def _parse_source(item: Any, shared: Mapping[str, Any], text: RuleText) -> Source:
    options = {**shared, **item} if isinstance(item, dict) else {**shared, "from": item}
    _check_keys(options, ITEM_KEYS, text)
    name = options.get("from")
    if not isinstance(name, str) or not name:
        raise _error(text, f"a source is a tensor or module name, not {name!r}")
    source = Source(
        pattern=parse_pattern(f"{text.scope}.{name}" if text.scope else name, text.where),
        parts=_parts(options.get("parts"), text),
        per=_per(options.get("per"), text),
        transpose=_flag(options.get("transpose", False), "transpose", text),
        rope=_rope(options.get("rope"), text),
    )
    if source.per is not None and len(source.parts) < 2:
        raise _error(text, "'per' says how several 'parts' interleave: give 'parts' too")
    if source.rope is not None and len(source.parts) > 1:
        raise _error(text, "'rope' reorders the heads of one part: it cannot go with 'parts'")
    return source


def _parts(value: Any, text: RuleText) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(p, str) for p in value):
        raise _error(text, f"'parts' is a list of part names such as [q, k, v], not {value!r}")
    if len(set(value)) < len(value):
        raise _error(text, f"'parts' names one part twice: {value}")
    return tuple(value)


def _per(value: Any, text: RuleText) -> str | int | None:
    if value is None or value in PER_WORDS:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    hint = did_you_mean(str(value), PER_WORDS)
    words = ", ".join(PER_WORDS)
    raise _error(text, f"'per' is {words} or a number of blocks, not {value!r}.{hint}")


def _rope(value: Any, text: RuleText) -> RopeOrder | None:
    known = get_args(RopeOrder)
    if value is None or value in known:
        return value
    hint = did_you_mean(str(value), known)
    raise _error(text, f"'rope' is {' or '.join(known)}, not {value!r}.{hint}")


def _flag(value: Any, key: str, text: RuleText) -> bool:
    if not isinstance(value, bool):
        raise _error(text, f"'{key}' is true or false, not {value!r}")
    return value


def _check_keys(options: Mapping[str, Any], known: tuple[str, ...], text: RuleText) -> None:
    for key in options:
        if key not in known:
            rest = f"the options here are {', '.join(known)}"
            raise _error(text, f"unknown option '{key}'; {rest}.{did_you_mean(key, known)}")
    if "from" not in options:
        raise _error(text, "has options but no 'from' that names the source")


def _check_wildcards(target: Pattern, sources: tuple[Source, ...], text: RuleText) -> None:
    for source in sources:
        for name in target.names:
            if name not in source.pattern.names:
                raise _error(
                    text,
                    f"{{{name}}} stands on the left but not in '{source.pattern}', so one tensor "
                    f"would fill the target of every {name}",
                )
        free = [name for name in source.pattern.names if name not in target.names]
        if len(free) > 1:
            both = ", ".join(f"{{{name}}}" for name in free)
            raise _error(
                text, f"{both} stand only on the right of '{source.pattern}': one wildcard stacks"
            )
    forms = [source.pattern.text for source in sources]
    for form in forms:
        if forms.count(form) > 1:
            raise _error(text, f"'{form}' is named twice")


def _error(text: RuleText, message: str) -> WeightMapError:
    return WeightMapError(f"{text.where}: {text.target}: {message}")
