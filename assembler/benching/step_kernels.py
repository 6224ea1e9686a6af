"""The kernels of one step: how long each takes, how much it moves and computes at least."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from assembler.kernels.cost import Cost


@dataclass(frozen=True)
class KernelTime:
    """All calls of a kernel with the same shapes in one step."""

    name: str
    shape: str
    calls: float  # in one step
    seconds: float  # of all of them together
    cost: Cost | None = None  # of all of them together; None: it is not known

    def to_json(self) -> dict[str, Any]:
        """By the names that `format=json` has."""
        cost = self.cost
        return {
            "kernel": self.name,
            "shape": self.shape,
            "calls": self.calls,
            "ms": self.seconds * 1e3,
            "GB_per_s": None if cost is None else cost.bytes / self.seconds / 1e9,
            "GFLOP_per_s": None if cost is None else cost.flops / self.seconds / 1e9,
        }


@dataclass(frozen=True)
class StepKernels:
    """The kernels of one step, the longest first."""

    name: str
    seconds: float  # of the whole step, with nothing measured within
    measured_by: str
    kernels: tuple[KernelTime, ...]

    @classmethod
    def of(
        cls, name: str, seconds: float, measured_by: str, kernels: Iterable[KernelTime]
    ) -> StepKernels:
        """With the kernels in their order."""
        ordered = sorted(kernels, key=lambda kernel: -kernel.seconds)
        return cls(name, seconds, measured_by, tuple(ordered))

    def to_json(self) -> dict[str, Any]:
        """By the names that `format=json` has."""
        return {
            "step": self.name,
            "ms": self.seconds * 1e3,
            "measured_by": self.measured_by,
            "kernels": [kernel.to_json() for kernel in self.kernels],
        }
