"""What is wrong between the rules of a map, found before there is a model, with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from assembler.errors import did_you_mean
from assembler.weights.map_rules import Rule, Source


def rule_conflicts(rules: Sequence[Rule]) -> Iterator[str]:
    """Rules for one target, and tensors of which some share is nobody's."""
    for one, other in combinations(rules, 2):
        if _overlap(one.target.form, other.target.form):
            yield (
                f"{other.where}: {other.target}: two rules fill it: "
                f"'{one.target}' at {one.where} means it too"
            )
    shares = {(rule.target.form, source.split): source for rule, source in _splits(rules)}
    for rule, source in _splits(rules):
        yield from _lacking_shares(rule, source, shares)


def _overlap(one: str, other: str) -> bool:
    """Whether some path is meant by both forms (wildcards are {} segments)."""
    pairs = list(zip(one.split("."), other.split("."), strict=False))
    if one.count(".") != other.count("."):
        return False
    return all(
        a == b or (a == "{}" and b.isdecimal()) or (b == "{}" and a.isdecimal()) for a, b in pairs
    )


def _splits(rules: Sequence[Rule]) -> Iterator[tuple[Rule, Source]]:
    for rule in rules:
        for way in rule.ways:
            yield from ((way, source) for source in way.sources if source.split)


def _lacking_shares(
    rule: Rule, source: Source, shares: dict[tuple[str, tuple[str, ...]], Source]
) -> Iterator[str]:
    """Every target that `split` lists has a rule that takes its share of the same tensor."""
    form = rule.target.form
    own = [name for name in source.split if f".{form}".endswith(f".{name}")]
    start = f"{rule.where}: {rule.target}"
    if not own:
        hint = did_you_mean(form.rpartition(".")[2], source.split)
        listed = ", ".join(source.split)
        yield f"{start}: 'split' lists {listed}, and not the target itself.{hint}"
        return
    for name in source.split:
        sibling = shares.get((form.removesuffix(own[0]) + name, source.split))
        if sibling is None:
            yield (
                f"{start}: '{source.pattern}' is split over {', '.join(source.split)}, "
                f"but the rule of '{name}' does not say so"
            )
        elif sibling.pattern.form != source.pattern.form:
            yield f"{start}: 'split' of '{source.pattern}', but '{name}' reads '{sibling.pattern}'"
