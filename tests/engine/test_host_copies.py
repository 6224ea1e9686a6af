"""What goes to a GPU goes through pinned memory and does not wait."""

from __future__ import annotations

import torch

from assembler.engine.host_copies import to_device


def test_numbers_and_rows_on_a_cpu():
    column = to_device([1.5, 2.0], torch.float32, torch.device("cpu"))
    assert column.dtype == torch.float32 and column.tolist() == [1.5, 2.0]
    assert to_device([[1, 2], [3, 4]], torch.int32, torch.device("cpu")).tolist() == [
        [1, 2],
        [3, 4],
    ]


def test_a_gpu_gets_them_from_pinned_memory_without_waiting(monkeypatch):
    asked = []

    def pin_memory(self):
        asked.append("pinned")
        return self

    def to(self, device, *, non_blocking):
        asked.append((device.type, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    to_device([1, 2], torch.int64, torch.device("cuda", 0))
    assert asked == ["pinned", ("cuda", True)]
