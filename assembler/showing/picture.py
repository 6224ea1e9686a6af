"""`ModelPicture`: what `show_model` gives, in every format."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from assembler.errors import OptionError
from assembler.showing.formats import Format, format_of
from assembler.showing.view import ModelView

_WIDTH = 10_000  # columns of a tree that goes to no terminal: a finding stays on its line


@dataclass(frozen=True)
class ModelPicture:
    """A model as a picture; `view` is the same as data."""

    view: ModelView

    @property
    def complete(self) -> bool:
        """Whether nothing that was found stands in the way of loading or of splitting."""
        checkpoint = self.view.checkpoint
        return not self.view.refused and (checkpoint is None or checkpoint.complete)

    def text(self, format: Format) -> str:
        """The picture in one of the formats; a tree comes without colours."""
        if format == "json":
            return json.dumps(self.view.to_json(), indent=2, ensure_ascii=False) + "\n"
        if format == "html":
            from assembler.showing.page import html_page

            return html_page(self.view)
        if format == "svg":
            from assembler.showing.figure import standalone_svg

            return standalone_svg(self.view)
        if format == "mermaid":
            from assembler.showing.mermaid import mermaid_text

            return mermaid_text(self.view)
        return self._tree()

    def save(self, path: str | Path, format: Format | None = None) -> None:
        """Write the picture to a file, in the format that its name ends in if none is given.

        Raises:
            OptionError: the ending says nothing, or the file cannot be written.
        """
        text = self.text(format or format_of(path))
        try:
            Path(path).expanduser().write_text(text, encoding="utf-8")
        except OSError as error:
            raise OptionError(f"out={path}: cannot be written: {error.strerror}") from None

    def print(self) -> None:
        """The tree, in colours where the terminal has them."""
        from rich.console import Console

        from assembler.showing.tree import render_tree

        console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
        console.print(render_tree(self.view, console.width))

    def _tree(self) -> str:
        from rich.console import Console

        from assembler.showing.tree import render_tree

        console = Console(width=_WIDTH, highlight=False, color_system=None)
        with console.capture() as capture:
            console.print(render_tree(self.view, _WIDTH))
        return capture.get()

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return self.text("svg")
