"""The first half of a layered drawing (Sugiyama et al., 1981): rows, and the order within them.

Every node stands in a row below all that it reads. An edge over several rows passes through a
*lane*, a narrow place in each row between, so that it never crosses a node. The order within rows
is improved by barycentres, keeping the one with the fewest crossings. All of it is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Link = tuple[str, str]  # (from, to)
_SWEEPS = 8


@dataclass(frozen=True)
class Layering:
    """Nodes and lane places in rows, from left to right."""

    rows: tuple[tuple[str, ...], ...]
    lanes: Mapping[Link, tuple[str, ...]]  # the places that a long edge passes, from the top
    row_of: Mapping[str, int]

    def steps(self, link: Link) -> tuple[str, ...]:
        """An edge as the places that it visits, both ends with it."""
        return (link[0], *self.lanes.get(link, ()), link[1])


def layer_nodes(nodes: Sequence[str], links: Sequence[Link], last: Iterable[str]) -> Layering:
    """Put nodes into rows.

    Args:
        nodes: each after all that it reads.
        links: the edges.
        last: the nodes that stand in the bottom row.
    """
    row_of: dict[str, int] = {}
    for node in nodes:
        row_of[node] = max((row_of[a] + 1 for a, b in links if b == node), default=0)
    bottom = max(row_of.values(), default=0)
    row_of.update(dict.fromkeys(last, bottom))
    rows: list[list[str]] = [[] for _ in range(bottom + 1)]
    lanes: dict[Link, tuple[str, ...]] = {}
    for a, b in links:  # lanes first: what goes round a block goes round its left side
        between = range(row_of[a] + 1, row_of[b])
        places = tuple(f"{a} to {b} in {row}" for row in between)
        if places:
            lanes[a, b] = places
        for place, row in zip(places, between, strict=True):
            rows[row].append(place)
            row_of[place] = row
    for node in nodes:
        rows[row_of[node]].append(node)
    layering = Layering(tuple(map(tuple, rows)), lanes, row_of)
    steps = [pair for link in links for pair in _pairs(layering.steps(link))]
    return Layering(_ordered(layering.rows, steps), lanes, row_of)


def _pairs(places: Sequence[str]) -> list[Link]:
    return list(pairwise(places))


def _ordered(rows: tuple[tuple[str, ...], ...], steps: Sequence[Link]) -> tuple:
    """The order with the fewest crossings that a few sweeps down and up find."""
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for a, b in steps:
        above.setdefault(b, []).append(a)
        below.setdefault(a, []).append(b)
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(_SWEEPS):
        if fewest == 0:
            break
        neighbours = below if sweep % 2 else above
        order = list(rows)
        numbers = range(len(rows) - 2, -1, -1) if sweep % 2 else range(1, len(rows))
        for number in numbers:
            beside = order[number + 1 if sweep % 2 else number - 1]
            order[number] = _by_barycentre(order[number], beside, neighbours)
        rows = tuple(order)
        count = _crossings(rows, below)
        if count < fewest:
            best, fewest = rows, count
    return best


def _by_barycentre(
    row: Sequence[str], beside: Sequence[str], neighbours: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    at = {name: n for n, name in enumerate(beside)}

    def centre(place: tuple[int, str]) -> float:
        known = [at[name] for name in neighbours.get(place[1], ())]
        return sum(known) / len(known) if known else place[0]

    return tuple(name for _, name in sorted(enumerate(row), key=centre))


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, Sequence[str]]) -> int:
    count = 0
    for upper, lower in pairwise(rows):
        at = {name: n for n, name in enumerate(lower)}
        ends = [(n, at[b]) for n, a in enumerate(upper) for b in below.get(a, ())]
        pairs = ((p, q) for k, p in enumerate(ends) for q in ends[k + 1 :])
        count += sum((p[0] - q[0]) * (p[1] - q[1]) < 0 for p, q in pairs)
    return count
