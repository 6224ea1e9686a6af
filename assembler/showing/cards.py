"""The nodes of a figure: how large each is, and how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from assembler.showing.diagram import Diagram, Node
from assembler.showing.layering import layer_nodes
from assembler.showing.layout import Box, Size
from assembler.showing.numbers import shape_text, short_count
from assembler.showing.view import BlockView

LETTER = 6.4  # width of a letter of the small text, with room for wide fonts
_NAME_LETTER = 8.0
_LINE = 15.0  # from one line of text to the next
_SIGN = 22.0  # width of the sign of an operation
_PADDING = 12.0
_WIDTHS = {0: 232.0, 1: 232.0, 2: 180.0}  # of a card, by the most that stand side by side
_NARROW = 156.0


def card_width(diagram: Diagram) -> float:
    """The width of the cards of a diagram: narrower where several stand beside each other."""
    names = [node.name for node in diagram.nodes]
    links = [(edge.source, edge.target) for edge in diagram.edges]
    blocks = {node.name for node in diagram.nodes if node.kind == "block"}
    rows = layer_nodes(names, links, [n.name for n in diagram.nodes if n.output]).rows
    return _WIDTHS.get(max(len(blocks & set(row)) for row in rows), _NARROW)


def node_size(node: Node, block: BlockView | None, width: float) -> Size:
    """(width, height) of a node; `block` is what a block node calls."""
    if block is not None:
        lines = _lines(block, width)
        return (width, 30.0 if not lines else 33.0 + _LINE * len(lines))
    if node.kind == "operator":
        return (_SIGN, _SIGN)
    return (max(34.0, len(node.label) * 7.2 + 18), 22.0)


def draw_node(node: Node, box: Box, block: BlockView | None, link: str | None) -> str:
    """A node as SVG; a block is a link to `link` if there is one."""
    if block is not None:
        return _card(box, block, link)
    if node.kind == "operator":
        return _operator(node, box)
    return (
        f'<g><rect class="sign" x="{box.left:.1f}" y="{box.top:.1f}" '
        f'width="{box.width:.1f}" height="{box.height:.1f}" rx="11"/>'
        f'<text class="ink code" x="{box.x:.1f}" y="{box.y + 4:.1f}" text-anchor="middle">'
        f"{escape(node.label)}</text></g>"
    )


def _card(box: Box, block: BlockView, link: str | None) -> str:
    lines = _lines(block, box.width)
    first = box.top + (19.5 if not lines else 21)
    count = block.block if block.part == "norm" else short_count(block.numel)
    if block.numel == 0 and block.part != "norm":
        count = ""
    name = fitted(block.name, box.width - 2 * _PADDING - 8 - len(count) * LETTER)
    parts = [
        f'<rect class="card" x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="7"/>',
        f'<rect class="bar" x="{box.left:.1f}" y="{box.top + 6:.1f}" width="4" '
        f'height="{box.height - 12:.1f}" rx="2"/>',
        f'<text class="ink name" x="{box.left + _PADDING:.1f}" y="{first:.1f}">'
        f"{escape(name)}</text>",
        f'<text class="soft" x="{box.right - _PADDING + 2:.1f}" y="{first:.1f}" '
        f'text-anchor="end">{count}</text>',
    ]
    for n, line in enumerate(lines):
        y = first + _LINE * (n + 1) + 2
        css = "ink" if n == 0 else "soft"
        x = box.left + _PADDING
        parts.append(f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(line)}</text>')
    title = escape(f"{block.name}: {block.block}. {block.summary}")
    body = f"<title>{title}</title>{''.join(parts)}"
    if link is None:
        return f'<g class="node {block.part}">{body}</g>'
    label = escape(f"{block.name}, {block.block}: show its weights")
    return f'<a class="node {block.part}" href="#{link}" aria-label="{label}">{body}</a>'


def fitted(name: str, room: float) -> str:
    """A name, cut where it is wider than `room` pixels."""
    letters = int(room / _NAME_LETTER)
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _lines(block: BlockView, width: float) -> list[str]:
    """The text below the name: the class, then facts, wrapped. A norm is its name alone."""
    if block.part == "norm":
        return []
    room = int((width - 2 * _PADDING) / LETTER)
    lines, rest = [block.block[:room]], ""
    for fact in block.facts or _shape(block):
        joined = f"{rest} · {fact}" if rest else fact
        if rest and len(joined) > room:
            lines.append(rest)
            joined = fact
        rest = joined
    return [*lines, rest] if rest else lines


def _shape(block: BlockView) -> tuple[str, ...]:
    """What tells most about a block that is one matrix."""
    return (shape_text(block.weights[0].shape),) if len(block.weights) == 1 else ()


def _operator(node: Node, box: Box) -> str:
    circle = f'<circle class="sign" cx="{box.x:.1f}" cy="{box.y:.1f}" r="{_SIGN / 2}"/>'
    if node.label != "+":
        text = f'<text class="ink" x="{box.x:.1f}" y="{box.y + 4:.1f}" text-anchor="middle">'
        return f"<g>{circle}{text}{escape(node.label)}</text></g>"
    arms = f"M{box.x - 5:.1f} {box.y:.1f}h10M{box.x:.1f} {box.y - 5:.1f}v10"
    return f'<g>{circle}<path class="cross" d="{arms}"/></g>'


def blocks_by_name(blocks: tuple[BlockView, ...]) -> Mapping[str, BlockView]:
    """The blocks of a section by the name that its equations use."""
    return {block.name: block for block in blocks}
