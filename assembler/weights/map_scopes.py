"""The `weights:` section as a tree of scopes, and how one map extends another.

A scope is a mapping whose keys are targets relative to it; its `from` is joined before every source
name inside. Scopes nest. `extends` lays the trees over each other, the extending map on top: a
scope merges with a scope, a rule replaces a rule, and null deletes what was inherited.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from assembler.errors import WeightMapError, did_you_mean
from assembler.weights.map_options import RuleText
from assembler.weights.map_rules import RULE_KEYS
from assembler.weights.pattern import parse_target
from assembler.weights.yaml_marks import Marked


@dataclass(frozen=True)
class Statement:
    """A target's YAML value and the file it comes from."""

    value: Any
    where: str
    depth: int  # 0 is the map extended last; a greater depth wins


@dataclass
class Scope:
    """A mapping of relative targets, under an optional source prefix."""

    source: str | None = None  # `from`; None says nothing, and so inherits
    where: str = ""
    children: dict[str, Scope | Statement] = field(default_factory=dict)


def read_scope(
    marked: Marked, keys: tuple[str, ...], value: dict[str, Any], depth: int, problems: list[str]
) -> Scope:
    """The tree of the mapping `value`, which stands under `keys` in the file `marked`.

    What is wrong goes to `problems`, and is left out of the tree.
    """
    where = marked.where(*keys)
    source = value.get("from")
    if source is not None and (not isinstance(source, str) or not source):
        problems.append(f"{where}: 'from' of a scope is one name prefix, not {source!r}")
        source = None
    scope = Scope(source, where)
    try:
        _check_scope_keys(value, where)
    except WeightMapError as problem:
        problems.append(str(problem))
        return scope
    for key, child in value.items():
        if key == "from":
            continue
        here = (*keys, key)
        try:
            parse_target(key, marked.where(*here))
        except WeightMapError as problem:
            problems.append(str(problem))
            continue
        if isinstance(child, dict) and not set(child) <= set(RULE_KEYS):
            scope.children[key] = read_scope(marked, here, child, depth, problems)
        else:
            scope.children[key] = Statement(child, marked.where(*here), depth)
    return scope


def _check_scope_keys(value: dict[str, Any], where: str) -> None:
    """Refuse a rule with a misspelt option, which would otherwise read as a scope."""
    targets = [key for key in value if key not in RULE_KEYS]
    options = [key for key in value if key in RULE_KEYS and key != "from"]
    near = [key for key in targets if difflib.get_close_matches(key, RULE_KEYS, 1, cutoff=0.8)]
    if options or ("from" in value and near):
        strange = near or targets
        raise WeightMapError(
            f"{where}: {', '.join(repr(key) for key in strange)} cannot stand beside "
            f"{', '.join(repr(key) for key in options or ['from'])}: a rule takes only "
            f"{', '.join(RULE_KEYS)}, a scope only 'from' and targets."
            f"{did_you_mean(strange[0], RULE_KEYS)}"
        )


def merge_scopes(base: Scope, over: Scope) -> Scope:
    """`base` with `over` laid on top."""
    merged = Scope(base.source if over.source is None else over.source, over.where)
    merged.children = dict(base.children)
    names = {parse_target(key, "").form: key for key in base.children}
    for key, child in over.children.items():
        inherited = names.get(parse_target(key, child.where).form, key)
        if inherited != key:
            raise WeightMapError(
                f"{child.where}: '{key}' is called '{inherited}' in the map it extends; "
                "use the same wildcard names"
            )
        below = base.children.get(key)
        if isinstance(below, Scope):
            child = _as_scope(child)
        if isinstance(child, Scope) and isinstance(below, Scope):
            merged.children[key] = merge_scopes(below, child)
        elif _deletes(child) and below is not None:
            del merged.children[key]
        else:
            merged.children[key] = child
    return merged


def _as_scope(child: Scope | Statement) -> Scope | Statement:
    """A lone `{from: x}` reads as a rule; over an inherited scope it changes the scope's prefix."""
    if isinstance(child, Statement) and isinstance(child.value, dict):
        source = child.value.get("from")
        if set(child.value) == {"from"} and isinstance(source, str):
            return Scope(source, child.where)
    return child


def _deletes(child: Scope | Statement) -> bool:
    return isinstance(child, Statement) and child.value is None


def flatten_scope(scope: Scope) -> list[RuleText]:
    """Every rule of the tree with its whole target, deletions applied.

    Raises WeightMapError when two rules of one file have one target, or a null deletes nothing.
    """
    by_form: dict[str, list[tuple[RuleText, int]]] = {}
    for text, depth in _walk(scope, "", scope.source or ""):
        form = parse_target(text.target, text.where).form
        by_form.setdefault(form, []).append((text, depth))
    rules = []
    for group in by_form.values():
        top = max(depth for _, depth in group)
        chosen = [text for text, depth in group if depth == top]
        if len(chosen) > 1:
            first, second = chosen[:2]
            raise WeightMapError(
                f"{second.where}: {second.target}: two rules for one target; "
                f"the other is at {first.where}"
            )
        if chosen[0].value is not None:
            rules.append(chosen[0])
        elif len(group) == 1:
            known = [other[0][0].target for other in by_form.values() if other is not group]
            hint = did_you_mean(chosen[0].target, known)
            raise WeightMapError(
                f"{chosen[0].where}: {chosen[0].target}: null deletes an inherited rule, "
                f"and there is none.{hint}"
            )
    return rules


def _walk(scope: Scope, target: str, source: str) -> Iterator[tuple[RuleText, int]]:
    for key, child in scope.children.items():
        path = f"{target}.{key}" if target else key
        if isinstance(child, Statement):
            yield RuleText(path, child.value, source, child.where), child.depth
        else:
            joined = ".".join(part for part in (source, child.source) if part)
            yield from _walk(child, path, joined)
