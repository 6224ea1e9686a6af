"""Times of launches on a GPU, and what the device itself does at best."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from assembler.kernels.cost import Cost, Roof

COPIED = 1 << 30  # bytes of the tensor whose copy is timed
FLUSH = 1 << 29  # bytes read to empty caches: more than any device has
FAILED = "FAILED"  # how the note of a row begins that is wrong
PRODUCT = 8192  # rows and columns of the matrices whose product is timed


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    group: str
    name: str
    seconds: float | None = None  # None: it ran, and was not timed
    share: float | None = None  # of what `of` names
    of: str = ""
    target: float | None = None  # the least share that is good enough
    note: str = ""
    roof_share: float | None = None  # of the device's best at any size; not what is judged

    @property
    def verdict(self) -> str:
        """ "ok", "below", or nothing where nothing is asked for."""
        if self.share is None or self.target is None:
            return ""
        return "ok" if self.share >= self.target else "below"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Clock:
    """Times functions that launch work on `device`; in a smoke run they run once, untimed."""

    device: torch.device
    smoke: bool = False
    rounds: int = 20

    def seconds(self, function: Callable[[], Any]) -> float | None:
        """The median time on the device, launches left out, with cold caches.

        The launches are recorded as a CUDA graph, so that Python does not show in short times.
        Before each replay memory larger than the device's caches is read: what the last replay left
        in them to be written is then written. (After a write to that memory, the timed launches
        would pay for the end of it.)
        """
        function()
        if self.smoke:
            return None
        replay = self._recorded(function)
        others = torch.zeros(FLUSH // 4, device=self.device)
        times = []
        for _ in range(self.rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            others.amax()
            start.record()
            replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def _recorded(self, function: Callable[[], Any]) -> Callable[[], None]:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            function()
        return graph.replay

    def compare(
        self,
        group: str,
        name: str,
        function: Callable[[], Any],
        cost: Cost,
        roof: Roof,
        **about: Any,
    ) -> Result:
        """A row that says which share of the device's own copy or product a kernel reaches.

        What memory bounds is judged beside a copy that moves as many bytes: launching takes a small
        one longer than its bytes do, whoever launches. Beside that stands the share of the copy at
        its best, by which no small kernel could pass.
        """
        seconds = self.seconds(function)
        if seconds is None:
            return Result(group, name, note="ran")
        best = cost.floor_seconds(roof)
        if cost.bound(roof) == "compute":
            return Result(group, name, seconds, best / seconds, "measured product", **about)
        floor = max(best, self._copy_seconds(cost.bytes, best))
        of = "a copy of its bytes"
        return Result(group, name, seconds, floor / seconds, of, roof_share=best / seconds, **about)

    def _copy_seconds(self, moved: int, at_best: float) -> float:
        """The time of a copy that reads and writes `moved` bytes together.

        `at_best` is what the measured bandwidth gives, which large copies reach.
        """
        if moved >= 2 * COPIED:
            return at_best
        source = torch.zeros(max(moved // 2, 1), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.seconds(lambda: target.copy_(source)) or at_best


def measured_roof(clock: Clock) -> Roof | None:
    """What the device copies and multiplies (bfloat16) a second, both directions of a copy counted.

    None in a smoke run.
    """
    numbers = 1024 if clock.smoke else COPIED // 2
    width = 16 if clock.smoke else PRODUCT
    source = torch.zeros(numbers, dtype=torch.bfloat16, device=clock.device)
    target = torch.empty_like(source)
    copying = clock.seconds(lambda: target.copy_(source))
    a = torch.randn(width, width, dtype=torch.bfloat16, device=clock.device)
    multiplying = clock.seconds(lambda: a @ a)
    if copying is None or multiplying is None:
        return None
    name = torch.cuda.get_device_name(clock.device)
    return Roof(name, 2 * COPIED / copying, 2 * PRODUCT**3 / multiplying)
