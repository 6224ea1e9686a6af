"""The page of a model: one HTML file that needs nothing but a browser, and nothing from a network.

What it says can be read without a script too; the script adds the choice of a layer and of a data
type, the way from a tensor to its parameter and back, and the search. Its own policy (CSP) allows
exactly the style and the script that it carries, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources

from assembler.showing.colours import DARK, LIGHT, Theme, figure_rules
from assembler.showing.figure import MONO, SANS, figure_shapes
from assembler.showing.page_blocks import explorer
from assembler.showing.page_data import page_data
from assembler.showing.page_parts import (
    checkpoint_section,
    header,
    layers_section,
    memory_section,
    strip_columns,
    tensors_section,
)
from assembler.showing.view import ModelView


def html_page(view: ModelView) -> str:
    """The whole document."""
    style, script = _style(view), _resource("page.js")
    # In a script element only `<` could end it or open a comment.
    data = json.dumps(page_data(view), ensure_ascii=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    title = escape(f"{view.title}: {view.conf}")
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="model-assembler">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#blocks">Skip to the blocks</a>
{header(view)}
<main>
{layers_section(view)}
{explorer(view)}
{memory_section(view)}
{tensors_section(view)}
{checkpoint_section(view)}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return resources.files("assembler.showing").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _style(view: ModelView) -> str:
    wide, narrow = (strip_columns(len(view.layer_kinds), most) for most in (64, 18))
    root = f"--sans:{SANS};--mono:{MONO};--columns:{wide};--columns-narrow:{narrow}"
    parts = [f":root{{{root}}}", _themed(LIGHT, ":root")]
    dark = _themed(DARK, ":root:not([data-theme=light])")
    parts += [f"@media (prefers-color-scheme:dark){{\n{dark}\n}}"]
    parts += [_themed(DARK, ":root[data-theme=dark]"), figure_shapes(), _resource("page.css")]
    return "\n".join(parts)


def _themed(theme: Theme, scope: str) -> str:
    """The colours of a theme as custom properties, and those of the figures."""
    names = ("background", "surface", "text", "muted", "line", "edge", "accent")
    properties = [f"--{name}:{getattr(theme, name)}" for name in names]
    properties += [f"--{part}:{colour}" for part, colour in theme.marks.items()]
    return f"{scope}{{{';'.join(properties)}}}\n{figure_rules(theme, scope)}"
