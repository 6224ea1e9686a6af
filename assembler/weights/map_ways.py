"""The ways that one rule stands for when entries of its list have alternatives of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

from assembler.weights.map_options import RuleText, rule_error

MOST_COMBINATIONS = 64


def combinations(value: Any, text: RuleText) -> list[Any]:
    """The ways that one stands for: those of every combination of what its entries may be."""
    options = value if isinstance(value, dict) else {"from": value}
    items = options.get("from")
    if not isinstance(items, list) or not any(_has_any(item) for item in items):
        return [value]
    choices = []
    for item in items:
        if _has_any(item):
            check_alone(item, "any", text)
            if not isinstance(item["any"], list) or len(item["any"]) < 2:
                raise rule_error(text, f"'any' is a list of two ways or more, not {item['any']!r}")
        choices.append(item["any"] if _has_any(item) else [item])
    count = math.prod(map(len, choices))
    if count > MOST_COMBINATIONS:
        raise rule_error(
            text, f"its entries combine in {count} ways, more than {MOST_COMBINATIONS}"
        )
    return [{**options, "from": list(chosen)} for chosen in product(*choices)]


def _has_any(item: Any) -> bool:
    return isinstance(item, dict) and "any" in item


def check_alone(options: Mapping[str, Any], key: str, text: RuleText) -> None:
    """Refuse other options beside `any` and `fill`."""
    others = [other for other in options if other != key]
    if others:
        inside = " Put them into its entries." if key == "any" else " List both ways under `any`."
        raise rule_error(
            text, f"'{key}' cannot stand beside {', '.join(map(repr, others))}.{inside}"
        )
