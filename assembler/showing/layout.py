"""The second half of a layered drawing: where everything stands, and the way of every edge.

Nodes of different sizes are supported; edges only ever lead downwards or sideways, and pass no
node. Rows are centred on their tallest node. Lengths are in pixels, y grows downwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from assembler.showing.coordinates import place_rows
from assembler.showing.layering import Layering, Link, layer_nodes

ROW_GAP = 26.0  # between the rows
SIDE_GAP = 18.0  # between neighbours in a row
LANE_WIDTH = 10.0  # of a place that an edge passes
_LEAVE, _ENTER = 10.0, 7.0  # from a row to where edges turn, below and above it

Point = tuple[float, float]
Size = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """Where a node stands."""

    x: float  # of its middle
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True)
class Layout:
    """A drawing without ink."""

    width: float
    height: float
    boxes: Mapping[str, Box]
    routes: Mapping[Link, tuple[Point, ...]]  # corners, from the source to the target


def lay_out(
    sizes: Mapping[str, Size],
    links: Sequence[Link],
    *,
    last: Collection[str] = (),
    small: Collection[str] = (),
) -> Layout:
    """Place nodes in rows and lead the edges.

    Args:
        sizes: (width, height) of each node; each after all that it reads.
        links: the edges, no two alike.
        last: nodes that stand in the bottom row.
        small: nodes that edges may also enter from the side, such as the sign of a sum.
    """
    layering = layer_nodes(list(sizes), links, last)
    lane = (LANE_WIDTH, 0.0)
    every = {name: sizes.get(name, lane) for row in layering.rows for name in row}
    widths = {name: width for name, (width, _) in every.items()}
    xs = place_rows(layering, links, widths, SIDE_GAP)
    left = min(xs[name] - width / 2 for name, width in widths.items())
    boxes, y = {}, 0.0
    edges_of_rows: list[tuple[float, float]] = []
    for row in layering.rows:
        height = max(every[name][1] for name in row)
        edges_of_rows.append((y, y + height))
        for name in row:
            boxes[name] = Box(xs[name] - left, y + height / 2, *every[name])
        y += height + ROW_GAP
    router = _Router(layering, boxes, edges_of_rows, links, small)
    return Layout(
        width=max(box.right for box in boxes.values()),
        height=y - ROW_GAP,
        boxes={name: boxes[name] for name in sizes},
        routes={link: router.route(link) for link in links},
    )


@dataclass(frozen=True)
class _Router:
    layering: Layering
    boxes: Mapping[str, Box]
    rows: Sequence[tuple[float, float]]  # top and bottom of each
    links: Sequence[Link]
    small: Collection[str]

    def route(self, link: Link) -> tuple[Point, ...]:
        """Down from the source, across between rows only, and down (or sideways) to the target."""
        source, target = self.boxes[link[0]], self.boxes[link[1]]
        x, points = source.x, [(source.x, source.bottom)]
        lanes = self.layering.lanes.get(link, ())
        for n, place in enumerate(lanes):
            to = self.boxes[place].x
            row_top, row_bottom = self.rows[self.layering.row_of[place]]
            if to != x:
                above = self.rows[self.layering.row_of[place] - 1][1]
                y = above + _LEAVE if n == 0 else row_top - _ENTER
                points += [(x, y), (to, y)]
                x = to
            points.append((x, row_bottom))
        if self._enters_from_side(link, x):
            side = target.left if x < target.x else target.right
            return _straightened([*points, (x, target.y), (side, target.y)])
        to = self._port(link, target)
        row = self.layering.row_of[link[1]]
        if to != x:
            y = self.rows[row][0] - _ENTER if lanes else self.rows[row - 1][1] + _LEAVE
            points += [(x, y), (to, y)]
        return _straightened([*points, (to, target.top)])

    def _arrives_at(self, link: Link) -> float:
        """The x at which an edge comes down to the row of its target."""
        return self.boxes[self.layering.steps(link)[-2]].x

    def _enters_from_side(self, link: Link, x: float) -> bool:
        """Whether an edge reaches a small node from beside it: the outermost one on either side."""
        target = self.boxes[link[1]]
        if link[1] not in self.small or target.left <= x <= target.right:
            return False
        near, far = sorted((x, target.x))
        row = self.layering.rows[self.layering.row_of[link[1]]]
        between = (self.boxes[name] for name in row if name != link[1])
        if any(box.right > near and box.left < far for box in between):
            return False
        arrivals = [self._arrives_at(other) for other in self.links if other[1] == link[1]]
        return x == min(arrivals) if x < target.x else x == max(arrivals)

    def _port(self, link: Link, target: Box) -> float:
        """Where the upper side of the target takes the edge: several of them side by side."""
        into = [other for other in self.links if other[1] == link[1]]
        if link[1] in self.small or len(into) == 1:
            return target.x
        into.sort(key=self._arrives_at)
        step = target.width / (len(into) + 1)
        return target.left + step * (into.index(link) + 1)


def _straightened(points: Sequence[Point]) -> tuple[Point, ...]:
    """Without points on the straight line between their neighbours, and without repetitions."""
    kept: list[Point] = []
    for point in points:
        if kept and point == kept[-1]:
            continue
        if len(kept) > 1 and any(kept[-2][d] == kept[-1][d] == point[d] for d in (0, 1)):
            kept.pop()
        kept.append(point)
    return tuple(kept)
