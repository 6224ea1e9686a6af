"""Launches of Triton kernels, noted instead of run, and compiled for GPUs that are not here.

A launch is compiled by the code that Triton itself runs at a first launch: types, constants and
alignments are what it works out from the arguments. Only where Triton compiles, not in its
interpreter (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

_run = JITFunction.run


@dataclass(frozen=True)
class Launch:
    """One call `kernel[grid](*arguments, **named)`."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def compile(self, architecture: str) -> CompiledKernel:
        """What Triton would run on such a device, e.g. "sm_90" or "gfx942"."""
        real = driver._active
        driver.set_active(_AbsentDevice(architecture))
        try:
            return _run(
                self.kernel, *self.arguments, grid=self.grid, warmup=True, **dict(self.named)
            )
        finally:
            driver._active = real


class _AbsentDevice:
    """All that Triton's compiler asks of a driver."""

    def __init__(self, architecture: str) -> None:
        nvidia = architecture.startswith("sm_")
        number = int(architecture.removeprefix("sm_")) if nvidia else architecture
        self.target = GPUTarget("cuda" if nvidia else "hip", number, 32 if nvidia else 64)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target  # by which Triton tells its caches of compiled kernels apart

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Note in the list all launches of Triton kernels inside; none of them runs."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert not warmup and all(size > 0 for size in grid), (kernel, grid)
        launches.append(Launch(kernel, tuple(grid), arguments, named))

    with patch.object(JITFunction, "run", record):
        yield launches
