"""The colours of figures and pages, light and dark: one for each part of a model, some for kinds.

Text on a fill, and marks on the background, keep the contrasts of WCAG 2.2 (a test computes them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """One set of colours."""

    background: str
    surface: str  # of panels
    text: str
    muted: str  # of what is said by the way
    line: str  # of borders
    edge: str  # of what connects blocks
    accent: str  # of links and of what is chosen
    marks: Mapping[str, str]  # by part: borders, bars
    fills: Mapping[str, str]  # by part: behind text
    kinds: tuple[str, ...]  # of the kinds of layers, in turn


LIGHT = Theme(
    background="#ffffff",
    surface="#f7f8fa",
    text="#1b2330",
    muted="#5b6676",
    line="#dde2ea",
    edge="#8290a3",
    accent="#2456c9",
    marks={
        "embedding": "#4a62d8",
        "attention": "#c26a06",
        "mlp": "#0b8577",
        "experts": "#8a46c9",
        "router": "#c03a86",
        "norm": "#6b7a8f",
        "position": "#0f82a8",
        "head": "#3450b4",
        "other": "#6f6f6f",
    },
    fills={
        "embedding": "#eef1fe",
        "attention": "#fff3e2",
        "mlp": "#e4f6f3",
        "experts": "#f4ebfd",
        "router": "#fdebf4",
        "norm": "#f1f4f7",
        "position": "#e4f5fb",
        "head": "#e9edfb",
        "other": "#f2f2f2",
    },
    kinds=("#2f6fdf", "#d9730d", "#0b8577", "#8a46c9", "#c03a86", "#7a6a1d", "#4b5563", "#b03030"),
)
DARK = Theme(
    background="#0f141c",
    surface="#161d28",
    text="#e7ecf3",
    muted="#9aa7b8",
    line="#2a3443",
    edge="#6d7c91",
    accent="#84aaff",
    marks={
        "embedding": "#8b9cf8",
        "attention": "#f0a44a",
        "mlp": "#3fc0ae",
        "experts": "#c08df0",
        "router": "#ee85bb",
        "norm": "#93a3b8",
        "position": "#54bfe2",
        "head": "#9fb0ff",
        "other": "#a5a5a5",
    },
    fills={
        "embedding": "#1c2342",
        "attention": "#33240f",
        "mlp": "#0f2d2a",
        "experts": "#2a1b3d",
        "router": "#3a1a2d",
        "norm": "#1f2733",
        "position": "#0f2b37",
        "head": "#1a2244",
        "other": "#262626",
    },
    kinds=("#6aa1ff", "#f0964a", "#3fc0ae", "#c08df0", "#ee85bb", "#c9b458", "#a3afbf", "#ef7f7f"),
)


def kind_colour(theme: Theme, number: int) -> str:
    """The colour of the kind of layer with this number."""
    return theme.kinds[number % len(theme.kinds)]


def figure_rules(theme: Theme, scope: str = "") -> str:
    """The style rules of a figure; each selector begins with `scope`."""
    at = f"{scope} " if scope else ""
    rules = [
        f"{at}.backdrop{{fill:{theme.background}}}",
        f"{at}.ink{{fill:{theme.text}}}",
        f"{at}.soft{{fill:{theme.muted}}}",
        f"{at}.edge{{stroke:{theme.edge};fill:none}}",
        f"{at}.tip{{fill:{theme.edge}}}",
        f"{at}.sign{{fill:{theme.background};stroke:{theme.edge}}}",
        f"{at}.cross{{stroke:{theme.text}}}",
        f"{at}.group{{fill:{theme.surface};stroke:{theme.line}}}",
    ]
    for part, mark in theme.marks.items():
        rules.append(f"{at}.{part} .card{{fill:{theme.fills[part]};stroke:{mark}}}")
        rules.append(f"{at}.{part} .bar{{fill:{mark}}}")
    rules += [
        f"{at}.kind-{n}{{fill:{colour};background-color:{colour}}}"
        for n, colour in enumerate(theme.kinds)
    ]
    return "\n".join(rules)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours `#rrggbb` (WCAG 2.2), 1 to 21."""
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
