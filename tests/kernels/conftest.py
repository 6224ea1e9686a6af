"""What the tests of Triton's kernels share: an interpreter that rounds, memory that is poisoned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


@pytest.fixture
def device_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round float32 to the nearest bfloat16, as devices do; Triton's interpreter cuts bits off."""
    cut_off = interpreter._convert_float

    def convert(numbers, source, target, rounding):
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut_off(numbers, source, target, rounding)
        values = torch.from_numpy(np.array(numbers, dtype=np.float32))
        return values.bfloat16().view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """What torch.empty gives holds NaN (or the largest integer): unwritten outputs then show."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
