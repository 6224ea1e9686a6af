"""How far left or right everything in a layered drawing stands.

The best places are those with the shortest edges that keep the order and the gaps of every row. One
row at a time is solved exactly (least squares under an order: isotonic regression by pooling
adjacent violators), in sweeps down and up; lanes stay straight, each moved as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from assembler.showing.layering import Layering, Link

_SWEEPS = 200
_STILL = 0.005  # pixels: less is no movement
_FIXED = 1e9  # weight of a place that does not move
_LONG = 1e-6  # weight of an edge that goes through a lane: it bends anyway


def place_rows(
    layering: Layering, links: Sequence[Link], widths: Mapping[str, float], gap: float
) -> dict[str, float]:
    """The x of the middle of every node and lane place."""
    return _Placer(layering, links, widths, gap).solve()


class _Placer:
    def __init__(
        self, layering: Layering, links: Sequence[Link], widths: Mapping[str, float], gap: float
    ) -> None:
        self.rows, self.widths, self.gap = layering.rows, widths, gap
        self.row_of = layering.row_of
        self.in_lanes = {p for places in layering.lanes.values() for p in places}
        self.x = self._start(layering)
        self.lanes = dict(layering.lanes)
        self.neighbours: dict[str, list[tuple[str, float]]] = {name: [] for name in widths}
        for a, b in links:
            steps = layering.steps((a, b))
            weight = 1.0 if len(steps) == 2 else _LONG
            self.neighbours[a].append((steps[1], weight))
            self.neighbours[b].append((steps[-2], weight))

    def _start(self, layering: Layering) -> dict[str, float]:
        """Everything as far left as the order allows, lanes straight if they can be."""
        x = dict.fromkeys(self.widths, 0.0)
        rigid = True
        for attempt in range(2 * len(x) + 2):
            rigid = attempt <= len(x)  # lanes that cross each other cannot all be straight
            moved = False
            for row in self.rows:
                for a, b in pairwise(row):
                    least = x[a] + self._apart(a, b)
                    if x[b] < least:
                        x[b], moved = least, True
            for places in layering.lanes.values() if rigid else ():
                furthest = max(x[place] for place in places)
                moved |= any(x[place] != furthest for place in places)
                x.update(dict.fromkeys(places, furthest))
            if not moved:
                break
        return x

    def _apart(self, a: str, b: str) -> float:
        return (self.widths[a] + self.widths[b]) / 2 + self.gap

    def solve(self) -> dict[str, float]:
        for _ in range(_SWEEPS):
            before = dict(self.x)
            for row in (*self.rows, *self.rows[::-1]):
                self._solve_row(row)
            for link, places in self.lanes.items():
                self._move_lane(link, places)
            if all(abs(self.x[name] - x) < _STILL for name, x in before.items()):
                break
        return {name: round(x, 1) for name, x in self.x.items()}

    def _solve_row(self, row: Sequence[str]) -> None:
        """Nodes move to the weighted mean of what they are tied to; lanes stay."""
        offsets, wanted, weights, at = [], [], [], 0.0
        for n, name in enumerate(row):
            at += self._apart(row[n - 1], name) if n else 0.0
            offsets.append(at)
            tied = self.neighbours[name]
            free = bool(tied) and name not in self.in_lanes
            total = sum(weight for _, weight in tied) if free else _FIXED
            mean = sum(self.x[o] * w for o, w in tied) / total if free else self.x[name]
            wanted.append(mean - at)
            weights.append(total)
        for name, offset, value in zip(row, offsets, isotonic(wanted, weights), strict=True):
            if name not in self.in_lanes:
                self.x[name] = value + offset

    def _move_lane(self, link: Link, places: Sequence[str]) -> None:
        """A straight lane moves as near to its ends as its neighbours in all its rows let it."""
        if len({self.x[place] for place in places}) > 1:
            return
        low, high = float("-inf"), float("inf")
        for place in places:
            row = self.rows[self.row_of[place]]
            n = row.index(place)
            if n > 0:
                low = max(low, self.x[row[n - 1]] + self._apart(row[n - 1], place))
            if n + 1 < len(row):
                high = min(high, self.x[row[n + 1]] - self._apart(place, row[n + 1]))
        middle = (self.x[link[0]] + self.x[link[1]]) / 2
        self.x.update(dict.fromkeys(places, max(low, min(high, middle))))


def isotonic(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The never falling values nearest to `wanted` in weighted least squares."""
    pools: list[list[float]] = []  # [mean, weight, how many]
    for value, weight in zip(wanted, weights, strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, weight, count = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * weight) / (last[1] + weight)
            last[1] += weight
            last[2] += count
    return [mean for mean, _, count in pools for _ in range(int(count))]
