"""The table of docs/sampling.md, made of the fields of `SamplingParams`.

    python tests/docs_sampling.py

puts it between its markers; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from assembler.engine.sampling_params import SamplingParams

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sampling.md"
_BLOCK = re.compile(r"(<!-- fields -->\n).*?(<!-- end -->)", re.S)
_TYPES = {
    "number": "number",
    "integer": "whole number",
    "boolean": "true or false",
    "string": "text",
}
_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
}


def table() -> str:
    """One row a field: name, default, what it takes, what it does."""
    rows = ["| Field | Default | Takes | Meaning |", "| --- | --- | --- | --- |"]
    for name, field in SamplingParams.model_json_schema()["properties"].items():
        default = _shown(field["default"])
        rows.append(f"| `{name}` | {default} | {_takes(field)} | {field['description']} |")
    return "\n".join(rows)


def page_with(text: str) -> str:
    """`text` with the table in its place."""
    return _BLOCK.sub(lambda m: f"{m[1]}{table()}\n{m[2]}", text)


def _shown(default: Any) -> str:
    return "none" if default == [] else str(default)


def _takes(field: dict[str, Any]) -> str:
    """The types of a field in words, with their bounds; None goes without saying."""
    options = [o for o in field.get("anyOf", [field]) if o.get("type") != "null"]
    return " or ".join(_one(option) for option in options)


def _one(option: dict[str, Any]) -> str:
    if option["type"] == "array":
        return f"list of: {_one(option['items'])}"
    bounds = [text.format(_number(option[key])) for key, text in _BOUNDS.items() if key in option]
    if option["type"] == "object":
        return f"mapping: token id → {_one(option['additionalProperties'])}"
    return ", ".join([_TYPES[option["type"]], *bounds])


def _number(value: float) -> str:
    if value == 2**63:
        return "2^63"
    return f"{value:g}"


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text("utf-8")), "utf-8")
