"""YAML values as one line of text, and what of them comes from config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ONLY_A_FIELD = re.compile(r"^\$\{(hf|hf_rope|calc):.*\}$", re.DOTALL)


def yaml_text(value: Any) -> str:
    """`value` in YAML's flow style: `RMSNorm {eps: 1e-05}` for a block, `[a, b]` for a list."""
    if isinstance(value, Mapping):
        fields = ", ".join(f"{k}: {yaml_text(v)}" for k, v in value.items() if k != "block")
        inside = f"{{{fields}}}" if fields or "block" not in value else ""
        return " ".join(part for part in (str(value.get("block", "")), inside) if part)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def config_reads(text: str) -> bool:
    """Whether a value is all taken from config.json."""
    return _ONLY_A_FIELD.match(text) is not None
