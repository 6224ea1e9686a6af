"""One rule of a weight map: which tensors on disk fill one module or parameter, and through what.

A rule is written as a source name, a list of them (merged in the order of the target's parts), or
a mapping with `from` and options. `any` lists several such ways, of which the first that a
checkpoint has is taken; `fill` is a way that needs no tensor. What can be wrong with a rule on its
own is found here, when the map is read; what depends on the model is found by the planner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assembler.blocks.parallel import ShardKind
from assembler.errors import did_you_mean
from assembler.weights.map_options import (
    ITEM_READERS,
    ParameterType,
    RopeOption,
    RuleText,
    read_flag,
    read_number,
    read_type,
    rule_error,
)
from assembler.weights.map_ways import check_alone, combinations
from assembler.weights.ops import Op
from assembler.weights.pattern import Pattern, parse_pattern, parse_target
from assembler.weights.quantization import Scheme
from assembler.weights.rearrange import Rearrangement

__all__ = ["ITEM_KEYS", "RULE_KEYS", "Rule", "RuleText", "Source", "parse_rule"]

ITEM_KEYS = ("from", *ITEM_READERS)
RULE_KEYS = (*ITEM_KEYS, "any", "fill", "dtype", "optional")
SETTINGS = ("dtype", "optional")  # of the parameter, however it is filled

# Options that cannot stand together in one source, and why.
_CLASHES = (
    ("transpose", "rearrange", "one pattern says it all"),
    ("per", "split", "each target gets one run of rows, and blocks would give it many"),
    ("per", "slice", "blocks have no rows to spare"),
    ("unstack", "split", "a tensor is shared out in one way"),
    ("unstack", "slice", "every row belongs to a parameter"),
    ("split", "slice", "every row belongs to a parameter"),
    ("unstack", "pad", "every row belongs to a parameter"),
    ("split", "pad", "every row belongs to a parameter"),
    ("rearrange", "slice", "the sizes come from the model"),
    ("rearrange", "pad", "the sizes come from the model"),
    ("parts", "slice", "it takes rows of an unfused tensor"),
    ("parts", "pad", "it adds rows to an unfused tensor"),
    ("rope", "slice", "heads have no rows to spare"),
    ("rope", "pad", "heads have no rows to add"),
)


@dataclass(frozen=True)
class Source:
    """One tensor name on the right side of a rule and what is done to it, in this order."""

    pattern: Pattern
    dequantize: Scheme | None = None  # it is two tensors, whatever config.json says
    unstack: str | None = None  # the wildcard of the target that picks one tensor of a stack
    transpose: bool = False
    rearrange: Rearrangement | None = None
    split: tuple[str, ...] = ()  # the targets that share the tensor's rows, in order
    slice: int | None = None  # it may hold more rows; those from here on are taken
    parts: tuple[str, ...] = ()  # the target's parts it holds, in its own order; (): the next one
    per: str | int | None = None  # blocks in which the parts repeat: a word or a count
    rope: RopeOption | None = None
    pad: float | None = None  # it may hold fewer rows; the others get this value
    values: tuple[Op, ...] = ()  # what is computed in the end

    @property
    def any_rows(self) -> bool:
        """Whether the number of rows on disk may differ from the parameter's."""
        return self.slice is not None or self.pad is not None


@dataclass(frozen=True)
class Rule:
    """Fills the module (all its leaves) or the one parameter that `target` names."""

    target: Pattern
    sources: tuple[Source, ...]  # (): `fill` is its value
    optional: bool
    where: str  # file:line
    tp: ShardKind = "replicated"  # how the map says the target is split over ranks
    tp_where: str | None = None  # file:line of the `tp` entry, None if there is none
    dtype: ParameterType | None = None  # kept whatever the model is loaded in
    fill: float | None = None
    alternatives: tuple[Rule, ...] = ()  # ways to fill it from other tensors, tried in order

    @property
    def ways(self) -> tuple[Rule, ...]:
        """This way of filling the target, then the alternatives."""
        return (self, *self.alternatives)

    def __str__(self) -> str:
        ways = (", ".join(str(s.pattern) for s in w.sources) or f"{w.fill:g}" for w in self.ways)
        return f"{self.target} ← {' or '.join(ways)}"


def parse_rule(text: RuleText) -> Rule:
    """Turn the YAML of one rule into a `Rule`.

    Raises WeightMapError (with file and line) for unknown options, option values that make no
    sense, options that do not go together, and wildcards that cannot work.
    """
    target = parse_target(text.target, text.where)
    options = text.value if isinstance(text.value, dict) else {"from": text.value}
    _check_keys(options, RULE_KEYS, text)
    dtype = read_type(options["dtype"], "dtype", text) if "dtype" in options else None
    optional = read_flag(options.get("optional", False), "optional", text)
    way = {key: value for key, value in options.items() if key not in SETTINGS}
    written = [way]
    if "any" in way:
        check_alone(way, "any", text)
        written = way["any"]
        if not isinstance(written, list) or len(written) < 2:
            raise rule_error(text, f"'any' is a list of two ways or more, not {written!r}")
    ways = [way for item in written for way in combinations(item, text)]
    rules = [_parse_way(target, way, text, optional, dtype) for way in ways]
    for rule in rules[:-1]:
        if rule.fill is not None:
            raise rule_error(text, "'fill' always applies: what follows it in 'any' never would")
    return Rule(
        target,
        rules[0].sources,
        optional,
        text.where,
        dtype=dtype,
        fill=rules[0].fill,
        alternatives=tuple(rules[1:]),
    )


def _parse_way(
    target: Pattern, value: Any, text: RuleText, optional: bool, dtype: ParameterType | None
) -> Rule:
    """One way to fill the target."""
    options = value if isinstance(value, dict) else {"from": value}
    targets = [key for key in options if key not in RULE_KEYS and not did_you_mean(key, RULE_KEYS)]
    if targets and "from" in options:
        raise rule_error(
            text,
            f"'any' lists ways to fill one target, not scopes with {', '.join(targets)}: write it "
            "at each target, or let `prefixes` accept other names",
        )
    _check_keys(options, (*ITEM_KEYS, "fill"), text)
    if "fill" in options:
        check_alone(options, "fill", text)
        number = read_number(options["fill"], "fill", text)
        return Rule(target, (), optional, text.where, dtype=dtype, fill=number)
    if "from" not in options:
        raise rule_error(text, "has options but no 'from' that names the source")
    names = options["from"]
    items = names if isinstance(names, list) else [names]
    if not items:
        raise rule_error(text, "an empty list names no source")
    for key in ("parts", "split"):
        if len(items) > 1 and options.get(key) is not None:
            raise rule_error(
                text, f"'{key}' splits one source; a list of sources is merged already"
            )
    shared = {key: value for key, value in options.items() if key != "from"}
    sources = tuple(_parse_source(item, shared, text) for item in items)
    _check_wildcards(target, sources, text)
    return Rule(target, sources, optional, text.where, dtype=dtype)


def _parse_source(item: Any, shared: Mapping[str, Any], text: RuleText) -> Source:
    options = {**shared, **item} if isinstance(item, dict) else {**shared, "from": item}
    _check_keys(options, ITEM_KEYS, text)
    name = options.pop("from", None)
    if not isinstance(name, str) or not name:
        raise rule_error(text, f"a source is a tensor or module name, not {name!r}")
    pattern = parse_pattern(f"{text.scope}.{name}" if text.scope else name, text.where)
    read = {key: ITEM_READERS[key](value, key, text) for key, value in options.items()}
    values = tuple(op for key in ("affine", "negative_exp") if (op := read.pop(key, None)))
    source = Source(pattern, values=values, **read)
    _check_options(source, {key for key, value in read.items() if value is not False}, text)
    return source


def _check_options(source: Source, given: set[str], text: RuleText) -> None:
    for one, other, why in _CLASHES:
        if {one, other} <= given:
            raise rule_error(text, f"'{one}' and '{other}' do not go together: {why}")
    if source.per is not None and len(source.parts) < 2:
        raise rule_error(text, "'per' says how several 'parts' interleave: give 'parts' too")
    rope = source.rope
    if rope is not None and len(source.parts) > 1 and not rope.parts:
        raise rule_error(
            text,
            "'rope' reorders the heads of one part: say of which, "
            f"rope: {{order: {rope.order}, parts: [{', '.join(source.parts[:2])}]}}",
        )
    for part in rope.parts if rope else ():
        if part not in source.parts:
            hint = did_you_mean(part, source.parts)
            raise rule_error(text, f"'rope' names '{part}', which is not in 'parts'.{hint}")


def _check_keys(options: Mapping[str, Any], known: tuple[str, ...], text: RuleText) -> None:
    for key in options:
        if key not in known:
            rest = f"the options here are {', '.join(known)}"
            raise rule_error(text, f"unknown option '{key}'; {rest}.{did_you_mean(key, known)}")


def _check_wildcards(target: Pattern, sources: tuple[Source, ...], text: RuleText) -> None:
    for source in sources:
        names = source.pattern.names
        if source.unstack is not None and source.unstack not in target.names:
            hint = did_you_mean(source.unstack, target.names)
            raise rule_error(
                text, f"'unstack' names {{{source.unstack}}}, which the left lacks.{hint}"
            )
        if source.unstack in names:
            raise rule_error(
                text, f"{{{source.unstack}}} is unstacked: it cannot stand in '{source.pattern}'"
            )
        for name in target.names:
            if name not in names and name != source.unstack:
                raise rule_error(
                    text,
                    f"{{{name}}} stands on the left but not in '{source.pattern}', so one tensor "
                    f"would fill the target of every {name}. `unstack: {name}` shares it out.",
                )
        free = [name for name in names if name not in target.names]
        if len(free) > 1:
            both = ", ".join(f"{{{name}}}" for name in free)
            raise rule_error(
                text, f"{both} stand only on the right of '{source.pattern}': one wildcard stacks"
            )
        if free and (source.split or source.any_rows):
            raise rule_error(
                text, "tensors that are stacked are taken whole: no split, slice or pad"
            )
    forms = [source.pattern.text for source in sources]
    for form in forms:
        if forms.count(form) > 1:
            raise rule_error(text, f"'{form}' is named twice")
