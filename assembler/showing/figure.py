"""The figure of a model (SVG): its equations around those of one kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from assembler.showing.cards import blocks_by_name, card_width, draw_node, fitted, node_size
from assembler.showing.colours import DARK, LIGHT, figure_rules
from assembler.showing.diagram import Node
from assembler.showing.layout import Box, Layout, Point, Size, lay_out
from assembler.showing.names import layers_text
from assembler.showing.view import BlockView, ModelView, SectionView

SANS = "Inter,system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace"
_MARGIN = 8.0
_HEADER = 34.0  # above the equations of a layer, for its title
_INSET = 14.0  # between the frame of the layers and what is in it
_RADIUS = 6.0  # of the corners of edges
_SHAPES = f"""\
svg.figure{{font-family:{SANS};font-size:12px}}
svg.figure .name{{font-weight:650;font-size:13px}}
svg.figure .code{{font-family:{MONO};font-size:12px}}
svg.figure .edge{{stroke-width:1.5}}
svg.figure .card,svg.figure .sign,svg.figure .group{{stroke-width:1.2}}
svg.figure .cross{{stroke-width:1.6;fill:none}}
"""

Target = Callable[[str | None, str], str | None]  # (kind, block) -> id of what tells more


def figure_style() -> str:
    """The style of a figure that stands by itself, light or dark as the viewer is."""
    dark = figure_rules(DARK)
    return f"{_SHAPES}{figure_rules(LIGHT)}\n@media (prefers-color-scheme:dark){{\n{dark}\n}}"


def figure_shapes() -> str:
    """The part of the style that has no colours."""
    return _SHAPES


def standalone_svg(view: ModelView) -> str:
    """All kinds of layers, side by side, as a file."""
    figures = [draw_figure(view, n) for n in range(len(view.kinds))]
    width = sum(w for w, _, _ in figures) + 24.0 * (len(figures) - 1)
    height = max(h for _, h, _ in figures) + 30
    body, x = [], 0.0
    for figure_width, _, drawing in figures:
        body.append(f'<g transform="translate({x:.1f} 30)">{drawing}</g>')
        x += figure_width + 24.0
    title = escape(f"{view.title} ({view.conf})")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" role="img" '
        f'viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.0f}" height="{height:.0f}">'
        f"<title>{title}</title><style>{figure_style()}</style>"
        f'<rect class="backdrop" width="100%" height="100%"/>'
        f'<text class="ink name" x="{_MARGIN}" y="20">{title}</text>{"".join(body)}</svg>\n'
    )


def inline_svg(view: ModelView, number: int, target: Target) -> str:
    """The figure with kind `number` of layers, for a page that has the style."""
    width, height, drawing = draw_figure(view, number, target)
    label = escape(f"Diagram of {view.title}, layers of kind {view.kinds[number].kind}")
    return (
        f'<svg class="figure" role="group" aria-label="{label}" '
        f'viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.0f}" height="{height:.0f}">'
        f"{drawing}</svg>"
    )


def draw_figure(
    view: ModelView, number: int, target: Target | None = None
) -> tuple[float, float, str]:
    """(width, height, SVG elements) of the model with one of its kinds of layers inside."""
    section = view.kinds[number]
    inner = _laid_out(section)
    spine = next(inner.boxes[node.name].x for node in section.diagram.nodes)
    half = max(spine, inner.width - spine) + _INSET
    header = _HEADER if len(view.kinds) == 1 else _HEADER + 16
    group = (2 * half, inner.height + header + _INSET)
    outer = _laid_out(view.model, group)
    frame = next(
        outer.boxes[node.name] for node in view.model.diagram.nodes if node.kind == "layers"
    )
    shift = f"translate({frame.x - spine:.1f} {frame.top + header:.1f})"
    drawing = [
        _frame(view, number, frame),
        _drawn(view.model, outer, target),
        f'<g transform="{shift}">{_drawn(section, inner, target)}</g>',
    ]
    width, height = outer.width + 2 * _MARGIN, outer.height + 2 * _MARGIN
    return width, height, f'<g transform="translate({_MARGIN} {_MARGIN})">{"".join(drawing)}</g>'


def _frame(view: ModelView, number: int, box: Box) -> str:
    """What stands around the equations of a layer: which layers they are of."""
    section = view.kinds[number]
    layers = f"layers {layers_text(section.layers)}"
    title = layers if len(view.kinds) == 1 else fitted(str(section.kind), box.width - 90)
    x, y = box.left + 30, box.top + 21.5
    parts = [
        f'<rect class="group" x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="12"/>',
        f'<rect class="kind-{number % len(LIGHT.kinds)}" x="{x - 16:.1f}" y="{y - 9.5:.1f}" '
        f'width="10" height="10" rx="3"/>',
        f'<text class="ink name" x="{x:.1f}" y="{y:.1f}">{escape(title)}</text>',
        f'<text class="soft" x="{box.right - 14:.1f}" y="{y:.1f}" text-anchor="end">'
        f"× {section.count}</text>",
    ]
    if title != layers:
        parts.append(f'<text class="soft" x="{x:.1f}" y="{y + 16:.1f}">{layers}</text>')
    return "".join(parts)


def _laid_out(section: SectionView, group: Size = (0.0, 0.0)) -> Layout:
    """Where everything stands; `group` is the size of the layers, in the model's section."""
    diagram, blocks = section.diagram, blocks_by_name(section.blocks)
    width = card_width(diagram)
    sizes = {
        node.name: group if node.kind == "layers" else _size(node, blocks, width)
        for node in diagram.nodes
    }
    return lay_out(
        sizes,
        [(edge.source, edge.target) for edge in diagram.edges],
        last=[node.name for node in diagram.nodes if node.output],
        small=[node.name for node in diagram.nodes if node.kind == "operator"],
    )


def _size(node: Node, blocks: Mapping[str, BlockView], width: float) -> Size:
    return node_size(node, blocks[node.label] if node.kind == "block" else None, width)


def _drawn(section: SectionView, layout: Layout, target: Target | None) -> str:
    """The edges, then the nodes over them."""
    blocks = blocks_by_name(section.blocks)
    parts = [_edge(route) for route in layout.routes.values()]
    for node in section.diagram.nodes:
        if node.kind == "layers":
            continue
        block = blocks[node.label] if node.kind == "block" else None
        link = target(section.kind, block.name) if target and block else None
        parts.append(draw_node(node, layout.boxes[node.name], block, link))
    return "".join(parts)


def _edge(points: Sequence[Point]) -> str:
    """A line with round corners and a tip."""
    (x, y), *_ = points
    path = [f"M{x:.1f} {y:.1f}"]
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        entry, leave = _towards(at, before), _towards(at, after)
        path.append(f"L{_xy(entry)}Q{_xy(at)} {_xy(leave)}")
    (x, y), previous = points[-1], points[-2]
    dx, dy = (x > previous[0]) - (x < previous[0]), (y > previous[1]) - (y < previous[1])
    path.append(f"L{x - 4 * dx:.1f} {y - 4 * dy:.1f}")
    side = (-3.5 * dy, 3.5 * dx)
    tip = f"M{x:.1f} {y:.1f}l{-6 * dx + side[0]:.1f} {-6 * dy + side[1]:.1f}"
    tip += f"l{-2 * side[0]:.1f} {-2 * side[1]:.1f}z"
    return f'<path class="edge" d="{"".join(path)}"/><path class="tip" d="{tip}"/>'


def _xy(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _towards(corner: Point, other: Point) -> Point:
    """Where a corner's curve begins on the way to the next point."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = abs(dx) + abs(dy)
    reach = min(_RADIUS, length / 2) / length
    return corner[0] + dx * reach, corner[1] + dy * reach
