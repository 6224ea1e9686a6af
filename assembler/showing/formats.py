"""What a picture can be written as, by name and by the ending of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from assembler.errors import OptionError

Format = Literal["tree", "html", "svg", "mermaid", "json"]
ENDINGS: dict[str, Format] = {
    ".html": "html",
    ".htm": "html",
    ".svg": "svg",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".json": "json",
    ".txt": "tree",
}


def format_of(path: str | Path) -> Format:
    """The format that the name of a file asks for.

    Raises:
        OptionError: it asks for none of them.
    """
    ending = Path(path).suffix.lower()
    if ending in ENDINGS:
        return ENDINGS[ending]
    raise OptionError(
        f"out={path}: what is it to be? Pass format=..., or a name that ends in "
        f"{', '.join(ENDINGS)}"
    )
