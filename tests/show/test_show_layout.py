"""The layered layout: nothing overlaps, edges lead down and round, the same every time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import combinations, pairwise

import pytest

from assembler.showing.coordinates import isotonic
from assembler.showing.layering import layer_nodes
from assembler.showing.layout import Box, Layout, lay_out

Link = tuple[str, str]
RESIDUAL = ["x", "norm", "attn", "+", "norm2", "moe", "shared", "+2", "out"]
RESIDUAL_LINKS = [
    ("x", "norm"),
    ("norm", "attn"),
    ("x", "+"),
    ("attn", "+"),
    ("+", "norm2"),
    ("norm2", "moe"),
    ("norm2", "shared"),
    ("+", "+2"),
    ("moe", "+2"),
    ("shared", "+2"),
    ("+2", "out"),
]


def random_graph(seed: int) -> tuple[dict[str, tuple[float, float]], list[Link], list[str]]:
    """Up to 30 nodes of all sizes; some are small, some edges are long."""
    dice = random.Random(seed)
    count = dice.randint(3, 30)
    names = [f"n{n}" for n in range(count)]
    links = {(names[dice.randrange(n)], names[n]) for n in range(1, count)}
    links |= {tuple(sorted(dice.sample(range(count), 2))) for _ in range(count // 2)}
    links = sorted(
        link if isinstance(link[0], str) else (names[link[0]], names[link[1]]) for link in links
    )
    small = [name for name in names[1:] if dice.random() < 0.3]
    sizes = {name: (dice.choice([34, 156, 232]), dice.choice([22, 93])) for name in names}
    sizes |= dict.fromkeys(small, (22, 22))
    return sizes, links, small


def residual() -> Layout:
    sizes = {name: (22.0, 22.0) if name[0] in "+xo" else (180.0, 60.0) for name in RESIDUAL}
    return lay_out(sizes, RESIDUAL_LINKS, last=["out"], small=["+", "+2"])


def crosses(box: Box, a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether a straight piece of an edge goes through the inside of a node."""
    left, right = sorted((a[0], b[0]))
    top, bottom = sorted((a[1], b[1]))
    beside = right <= box.left + 0.5 or left >= box.right - 0.5
    return not beside and top < box.bottom - 0.5 and bottom > box.top + 0.5


def check(layout: Layout, links: list[Link]) -> None:
    boxes: Mapping[str, Box] = layout.boxes
    for one, other in combinations(boxes.values(), 2):
        apart = one.right <= other.left or other.right <= one.left
        assert apart or one.bottom <= other.top or other.bottom <= one.top, (one, other)
    for box in boxes.values():
        assert box.left >= -0.1 and box.right <= layout.width + 0.1
        assert box.top >= 0 and box.bottom <= layout.height + 0.1
    for link in links:
        route, (a, b) = layout.routes[link], (boxes[link[0]], boxes[link[1]])
        assert boxes[link[0]].bottom < boxes[link[1]].bottom
        assert route[0] == (a.x, a.bottom), "an edge leaves below its source"
        assert b.left <= route[-1][0] <= b.right and b.top <= route[-1][1] <= b.bottom
        for (x, y), (to_x, to_y) in pairwise(route):
            assert to_y >= y and (x == to_x or y == to_y), "down or sideways only"
            for name, box in boxes.items():
                assert not crosses(box, (x, y), (to_x, to_y)), (link, name, route)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    sizes, links, small = random_graph(seed)
    check(lay_out(sizes, links, small=small), links)


def test_a_layer_with_two_branches() -> None:
    layout = residual()
    check(layout, RESIDUAL_LINKS)
    spine = [layout.boxes[name].x for name in RESIDUAL if name not in ("moe", "shared")]
    assert max(spine) - min(spine) < 0.2, "the residual stream is one straight line"
    moe, shared = layout.boxes["moe"], layout.boxes["shared"]
    assert moe.y == shared.y and moe.x + shared.x == pytest.approx(2 * spine[0], abs=0.3)
    route = layout.routes["x", "+"]
    assert min(x for x, _ in route) < layout.boxes["norm"].left, "it goes round the block"
    assert route[-1] == (layout.boxes["+"].left, layout.boxes["+"].y), "and enters from beside"


def test_the_same_every_time() -> None:
    assert residual() == residual()
    sizes, links, small = random_graph(3)
    assert lay_out(sizes, links, small=small) == lay_out(sizes, links, small=small)


def test_crossings_are_avoided() -> None:
    links = [("a", "d"), ("b", "c")]
    layering = layer_nodes(["r", "a", "b", "c", "d"], [("r", "a"), ("r", "b"), *links], [])
    order = {name: n for row in layering.rows for n, name in enumerate(row)}
    assert (order["a"] < order["b"]) == (order["d"] < order["c"])


def test_long_edges_pass_a_lane_in_every_row_between() -> None:
    layering = layer_nodes(RESIDUAL, RESIDUAL_LINKS, ["out"])
    assert len(layering.lanes["x", "+"]) == 2
    for a, b in RESIDUAL_LINKS:
        rows = [layering.row_of[place] for place in layering.steps((a, b))]
        assert rows == list(range(rows[0], rows[0] + len(rows)))


def test_pooling_solves_least_squares_under_an_order() -> None:
    assert isotonic([1, 2, 3], [1, 1, 1]) == [1, 2, 3]
    assert isotonic([3, 1], [1, 3]) == [1.5, 1.5]
    assert isotonic([0, 9, 3, 3], [1, 1, 1, 1]) == [0, 5, 5, 5]
