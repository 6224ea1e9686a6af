"""What an entry of a map's `tp` section means, and what to say of one that means no rule."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

from assembler.errors import did_you_mean
from assembler.weights.map_rules import Rule


def names_target(entry: str, target: str) -> bool:
    """Whether a tp entry means a target: itself, a leaf of it, or without its `layers.{i}.`.

    Both are forms: wildcards are blanked.
    """
    if target == entry or target.startswith(f"{entry}."):
        return True
    return f"{{}}.{entry}." in f"{target}."


def tp_hint(entry: str, rules: Sequence[Rule], modules: Collection[str]) -> str:
    """What to do about an entry that no rule fills: the entry is misspelt, or the rule is.

    The model, where there is one, says which.
    """
    forms = {re.sub(r"(?<=\.)\d+(?=\.|$)", "{}", module) for module in modules}
    if forms and not any(names_target(entry, form) for form in forms):
        return did_you_mean(entry, {_short(form) for form in forms}, most=1)
    by_name = {_short(r.target.form): r for r in rules if r.target.form not in forms}
    near = difflib.get_close_matches(entry, list(by_name), 1)
    if not near:
        return " The model has it: write its rule." if forms else ""
    rule = by_name[near[0]]
    if forms:
        return f" The model has it, and no '{rule.target}', which {rule.where} fills."
    return f" One of the two is misspelt: it, or the rule '{rule.target}' at {rule.where}."


def _short(form: str) -> str:
    """A target without its `layers.{i}.`."""
    return form.rpartition("}.")[2]
