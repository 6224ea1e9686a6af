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


def checked_format(asked: Format | None, path: str | Path | None) -> Format:
    """The format that is asked for, by its name or by that of the file.

    Raises:
        OptionError: the two contradict each other, or the file's name asks for none.
    """
    if asked is None:
        return "tree" if path is None else format_of(path)
    meant = asked if path is None else ENDINGS.get(Path(path).suffix.lower(), asked)
    if meant != asked:
        raise OptionError(
            f"format={asked} contradicts out={path}, which is {meant} by its ending: leave "
            "format= out, or give the file another name"
        )
    return asked


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
