"""The first half of a plan: which rule fills which parameter, and whether map and model agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from assembler.errors import did_you_mean
from assembler.weights.issues import Issue
from assembler.weights.map_options import ParameterType
from assembler.weights.map_rules import Rule
from assembler.weights.parameters import ModelParameters, ParameterSlot
from assembler.weights.pattern import PatternTree
from assembler.weights.recipes import Misfit, Recipe, Way, make_ways
from assembler.weights.siblings import Siblings
from assembler.weights.weight_map import WeightMap
from assembler.weights.yaml_marks import display_path


@dataclass(frozen=True)
class Matched:
    """Every parameter's recipes, and what is wrong before a checkpoint is looked at."""

    ways: dict[str, tuple[Way, ...]]  # by parameter name; the first that a checkpoint has counts
    misfits: set[str]  # parameters whose rule cannot be applied to them
    issues: list[Issue]
    dtypes: dict[str, ParameterType]  # parameters that keep a type of their own

    @property
    def recipes(self) -> Iterator[Recipe]:
        """Every recipe of every way."""
        return (r for ways in self.ways.values() for way in ways for r in way.recipes)


def match_rules(weight_map: WeightMap, model: ModelParameters) -> Matched:
    """Find the one rule of every parameter and work out what it reads."""
    tree: PatternTree[Rule] = PatternTree()
    for rule in weight_map.rules:
        tree.add(rule.target, rule)
    ways: dict[str, tuple[Way, ...]] = {}
    dtypes: dict[str, ParameterType] = {}
    siblings = Siblings(model.slots)
    issues: list[Issue] = []
    misfits: set[str] = set()
    applied: set[int] = set()
    for slot in model.slots.values():
        rules = tree.find(slot.name) or tree.find(slot.module)
        applied |= {id(rule) for rule in rules}
        if len(rules) == 1:
            issues += split_issues(rules[0], slot, model)
            try:
                ways[slot.name] = make_ways(rules[0], slot, model.tp, siblings)
                if rules[0].dtype is not None:
                    dtypes[slot.name] = rules[0].dtype
            except Misfit as misfit:
                issues.append(Issue("map", slot.name, str(misfit), (), rules[0].where))
                misfits.add(slot.name)
        elif rules:
            places = " and ".join(f"'{rule.target}' ({rule.where})" for rule in rules)
            issues.append(Issue("map", slot.name, f"two rules fill it: {places}"))
            misfits.add(slot.name)
        elif slot.tied_to is None:
            issues.append(_no_rule(slot, weight_map))
    issues += _idle_rules(weight_map, applied, model)
    return Matched(ways, misfits, issues, dtypes)


def split_issues(rule: Rule, slot: ParameterSlot, model: ModelParameters) -> Iterator[Issue]:
    """Hold the map's `tp` against what the block was built for."""
    said, built = rule.tp, slot.layout.kind
    whole_bias = said == "row" and built == "replicated" and slot.leaf == "bias"
    if said != built and not whole_bias:
        words = {"replicated": "keeps it whole on every rank"}
        theirs = words.get(said, f"splits it by {said}")
        ours = words.get(built, f"splits it by {built}")
        target = rule.target.text.rpartition("}.")[2]
        hint = f"List '{target}' under tp.{built}."
        if built == "replicated":
            hint = f"Take '{target}' out of tp.{said}."
        where = rule.tp_where or rule.where
        message = f"the map {theirs}, its block {ours}"
        yield Issue("tp", slot.name, message, (), where, hint)


def _no_rule(slot: ParameterSlot, weight_map: WeightMap) -> Issue:
    hint = did_you_mean(_general(slot.module), [rule.target.text for rule in weight_map.rules])
    message = f"no rule of the weight map '{weight_map.name}' fills it"
    where = display_path(weight_map.files[0])
    return Issue("missing", slot.name, message, (), where, hint)


def _idle_rules(
    weight_map: WeightMap, applied: set[int], model: ModelParameters
) -> Iterator[Issue]:
    """Rules that fill nothing: the model lacks the name, or nothing is left there to fill."""
    idle = [rule for rule in weight_map.rules if id(rule) not in applied and not rule.optional]
    own_file = display_path(weight_map.files[0])
    taken_back = f"The rule is inherited: null in {own_file} takes it back."
    if not idle:
        return
    paths: PatternTree[Rule] = PatternTree()
    for rule in idle:
        paths.add(rule.target, rule)
    there = {id(rule) for path in (*model.modules, *model.slots) for rule in paths.find(path)}
    owners = {_general(name) for slot in model.slots.values() for name in (slot.module, slot.name)}
    for rule in idle:
        subject = rule.target.text
        inherited = not rule.where.startswith(f"{own_file}:")
        if id(rule) not in there:
            message = "the model has no such module or parameter"
            hint = taken_back if inherited else did_you_mean(subject, owners)
            if not hint:
                hint = " Mark the rule `optional: true` if only some models of the family have it."
            yield Issue("unknown_target", subject, message, (), rule.where, hint)
        else:
            inside = sorted(name for name in owners if name.startswith(f"{_general(subject)}."))
            message = "the rule moves nothing: the module has no parameters of its own"
            hint = f"Name what is inside it: {', '.join(inside[:4])}." if inside else ""
            if subject in owners:
                message = "the rule moves nothing: rules for its parameters take them all"
                hint = taken_back if inherited else "Delete the rule."
            yield Issue("dead_rule", subject, message, (), rule.where, hint)


def _general(path: str) -> str:
    """`layers.{i}.attn` for `layers.3.attn`, the way targets are written."""
    return re.sub(r"(?<=\.)(\d+|\{\w+\})(?=\.|$)", "{i}", path)
