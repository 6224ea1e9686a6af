"""How one conf is laid over another: the rule of inheritance, of variants and of overrides.

A mapping changes the fields it names and leaves the others; anything else, null and lists among
them, replaces what was there. A mapping that names another `block:` replaces the block whole: one
kind of block takes nothing over from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def overlay(base: Any, over: Any) -> Any:
    """`over` laid on top of `base`; neither is changed."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping) or replaces(base, over):
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = overlay(base[key], value) if key in base else value
    return merged


def replaces(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """True if `over` puts another block in the place of `base`."""
    return "block" in base and over.get("block", base["block"]) != base["block"]
