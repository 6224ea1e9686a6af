"""The generated table of docs/engine.md.

    python tests/docs_engine.py

writes the options into the page; the test of the page compares.
"""

from __future__ import annotations

import json
from pathlib import Path

from assembler.llm_options import LLMOptions

PAGE = Path(__file__).parents[1] / "docs" / "engine.md"
_HEADER = "| option | default | meaning |\n| --- | --- | --- |\n"


def option_rows() -> str:
    """A row of the table for each option of `LLM`."""
    rows = []
    for name, field in LLMOptions.model_fields.items():
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        rows.append(f"| `{name}` | {default} | {field.description.replace('|', '/')} |\n")
    return "".join(rows)


def with_options(page: str) -> str:
    """The text of the page with the table as it should be."""
    before, rest = page.split(_HEADER)
    _, after = rest.split("\n\n", 1)
    return f"{before}{_HEADER}{option_rows()}\n{after}"


if __name__ == "__main__":
    PAGE.write_text(with_options(PAGE.read_text("utf-8")), "utf-8")
