"""The other ranks of a tensor-parallel model, as an engine sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch


class Peers(Protocol):
    """Rank 0 schedules, samples and sends every step; the others receive and run it."""

    @property
    def size(self) -> int:
        """How many ranks there are, this one included."""
        ...

    def fewest(self, count: int) -> int:
        """The smallest of the counts that all ranks give; every rank calls it."""
        ...

    def step(self, inputs: torch.Tensor) -> AbstractContextManager[None]:
        """Send `inputs` [n] (int64), which this rank runs inside of the `with` as well."""
        ...

    def receive(self) -> torch.Tensor | None:
        """The inputs of the next step; None when there will be no more."""
        ...
