"""Watches the loader: what it reads from disk, and what memory it takes meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from assembler.weights import copy_jobs
from assembler.weights.execute import execute_plan, materialize
from assembler.weights.file_reader import FileReader
from assembler.weights.index import CheckpointIndex
from assembler.weights.ops import apply_ops
from assembler.weights.plan import LoadPlan, plan_load
from assembler.weights.staging import Staging
from assembler.weights.weight_map import WeightMap

Values = dict[str, torch.Tensor]


@dataclass
class Watch:
    """Every read (file, first byte, length) and every staging buffer that was allocated."""

    reads: list[tuple[Path, int, int]] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(length for _, _, length in self.reads)

    def assert_each_byte_at_most_once(self) -> None:
        ends: dict[Path, int] = {}
        for file, start, length in sorted(self.reads):
            assert start >= ends.get(file, 0), f"{file}: byte {start} is read again"
            ends[file] = start + length


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch()
    read_into, allocate = FileReader.read_into, Staging._allocate

    def watched_read(self: FileReader, buffer: memoryview, info, start: int) -> None:
        seen.reads.append((info.file, info.offset + start, len(buffer)))
        read_into(self, buffer, info, start)

    def watched_allocate(self: Staging, nbytes: int) -> torch.Tensor:
        seen.buffers.append(nbytes)
        return allocate(self, nbytes)

    monkeypatch.setattr(FileReader, "read_into", watched_read)
    monkeypatch.setattr(Staging, "_allocate", watched_allocate)
    return seen


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks so small that tiny tensors need several; returns the bytes of a staged one."""
    monkeypatch.setattr(copy_jobs, "DIRECT_BYTES", 100)
    monkeypatch.setattr(copy_jobs, "STAGED_BYTES", 256)
    return 256


def planned(model: nn.Module, weight_map: WeightMap, index: CheckpointIndex) -> LoadPlan:
    plan = plan_load(weight_map, model, index)
    plan.raise_for_findings()
    return plan


def load(
    model: nn.Module,
    weight_map: WeightMap,
    index: CheckpointIndex,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> Values:
    plan = planned(model, weight_map, index)
    materialize(model, "cpu", dtype)
    execute_plan(plan, model, index, **options)
    return {name: p.detach() for name, p in model.named_parameters()}


def load_naively(
    model: nn.Module,
    weight_map: WeightMap,
    index: CheckpointIndex,
    dtype: torch.dtype = torch.float32,
) -> Values:
    """The same plan, a whole tensor at a time."""
    plan = planned(model, weight_map, index)
    values = {n: torch.empty(p.shape, dtype=dtype) for n, p in model.named_parameters()}
    for piece in plan.pieces:
        place = values[piece.target]
        for span in piece.target_slice:
            place = place.narrow(span.dim, span.start, span.stop - span.start)
        place.copy_(apply_ops(piece.ops, index.read(piece.source)))
    return values


def assert_same(loaded: Values, expected: Values) -> None:
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value), name
