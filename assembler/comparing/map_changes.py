"""What differs between two weight maps: where each module's tensors come from, how it is split."""

from __future__ import annotations

from assembler.comparing.conf_changes import Change
from assembler.weights.map_rules import Rule, Source
from assembler.weights.weight_map import WeightMap

_UNSAID = ("pattern", "values", "rope", "dequantize", "rearrange")


def map_changes(new: WeightMap, old: WeightMap) -> list[Change]:
    """The rules that differ, in the order of the map, then the splits and what is ignored."""
    ours, theirs = (_by_target(side) for side in (new, old))
    changes = []
    for target in dict.fromkeys([*ours, *theirs]):
        a, b = (side.get(target) for side in (ours, theirs))
        texts = ("" if a is None else _rule_text(a), "" if b is None else _rule_text(b))
        if texts[0] != texts[1]:
            kind = "added" if b is None else "dropped" if a is None else "changed"
            changes.append(Change(kind, target, *texts))
        if a is not None and b is not None and a.tp != b.tp:
            changes.append(Change("changed", f"tp of {target}", a.tp, b.tp))
    ignored = [{i.glob: i.reason for i in side.ignore} for side in (new, old)]
    for pattern in dict.fromkeys([*ignored[0], *ignored[1]]):
        here, there = (side.get(pattern, "") for side in ignored)
        if here != there:
            kind = "added" if not there else "dropped" if not here else "changed"
            changes.append(Change(kind, f"ignored: {pattern}", here, there))
    return changes


def _by_target(weight_map: WeightMap) -> dict[str, Rule]:
    return {str(rule.target): rule for rule in weight_map.rules}


def _rule_text(rule: Rule) -> str:
    ways = [
        ", ".join(map(_source_text, way.sources)) if way.sources else f"all {way.fill:g}"
        for way in rule.ways
    ]
    settings = [f"kept in {rule.dtype}"] * bool(rule.dtype) + ["optional"] * rule.optional
    return " or ".join(ways) + (f" ({', '.join(settings)})" if settings else "")


def _source_text(source: Source) -> str:
    """The name on disk and what is done to it, in the words of the map."""
    done = [
        f"{name}: {value if not isinstance(value, tuple) else '[' + ', '.join(value) + ']'}"
        for name, value in vars(source).items()
        if name not in _UNSAID and value not in (None, False, ())
    ]
    done += [repr(op) for op in source.values]
    if source.rope is not None:
        done.append(f"rope: {source.rope.order}")
    if source.rearrange is not None:
        done.append(f"rearrange: {source.rearrange.text}")
    return f"{source.pattern}" + (f" {{{', '.join(done)}}}" if done else "")
