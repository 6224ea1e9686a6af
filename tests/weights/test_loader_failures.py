"""A load that fails says which file and tensor, stops its threads, and leaves nothing to use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loader_harness import small_chunks  # noqa: F401
from weights_harness import decoder, save, tensors, write_map

from assembler.errors import CheckpointError
from assembler.weights import copy_jobs
from assembler.weights.execute import execute_plan, materialize
from assembler.weights.plan import plan_load
from assembler.weights.staging import Staging

Preadv = Callable[[int, list, int], int]


def fails(
    tmp_path: Path, expected: type[BaseException], match: str, dtype=torch.float32, **options
):
    """Load a tiny checkpoint and check how it fails."""
    index = options.pop("index", None) or save(tmp_path, tensors())
    model = decoder()
    plan = plan_load(write_map(tmp_path), model, index)
    threads = threading.active_count()
    with pytest.raises(expected, match=match) as caught:
        materialize(model, "cpu", dtype)
        execute_plan(plan, model, index, **options)
    assert all(p.is_meta for p in model.parameters())
    assert threading.active_count() == threads
    return caught.value


def break_reads(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    """Let every read from byte `at` on fail."""
    preadv = os.preadv

    def failing(fd: int, buffers: list, position: int) -> int:
        if position >= at:
            raise error
        return preadv(fd, buffers, position)

    monkeypatch.setattr(os, "preadv", failing)


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("cosmic ray")])
def test_a_disk_error(error: Exception, readers: int, tmp_path: Path, monkeypatch):
    index = save(tmp_path, tensors())
    last = max(index.tensors.values(), key=lambda info: info.offset)
    break_reads(monkeypatch, last.offset, error)
    message = (
        rf"model\.safetensors: loading tensor '{last.name}' into .* failed: .*{error.args[-1]}"
    )
    raised = fails(tmp_path, CheckpointError, message, index=index, readers=readers)
    assert raised.__cause__ is error


def test_a_disk_error_while_values_are_cast(tmp_path: Path, monkeypatch, small_chunks):  # noqa: F811
    index = save(tmp_path, tensors())
    info = index.tensors["model.layers.1.mlp.down_proj.weight"]
    break_reads(monkeypatch, info.offset + 256, OSError(5, "Input/output error"))
    message = r"'model\.layers\.1\.mlp\.down_proj\.weight' into layers\.1\.mlp\.down"
    fails(tmp_path, CheckpointError, message, torch.bfloat16, index=index, readers=1)


def test_the_file_is_cut_short_after_its_header_was_read(tmp_path: Path):
    index = save(tmp_path, tensors())
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size - 400)
    message = r"model\.safetensors: ends at byte [\d,]+, before tensor '.*The file is incomplete"
    fails(tmp_path, CheckpointError, message, index=replace(index))


def test_the_file_goes_away(tmp_path: Path):
    index = save(tmp_path, tensors())
    (tmp_path / "model.safetensors").unlink()
    message = r"model\.safetensors: cannot be read: No such file"
    fails(tmp_path, CheckpointError, message, index=index)


def test_no_memory_for_the_model(tmp_path: Path, monkeypatch):
    empty = torch.empty

    def no_memory(*shape, device=None, **options):
        if shape and shape[0] == (8 * 2, 12) and str(device) == "cpu":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nstack trace")
        return empty(*shape, device=device, **options)

    monkeypatch.setattr(torch, "empty", no_memory)
    message = r"^no memory on cpu for layers\.0\.mlp\.gate_up\.weight \(768 bytes\): Def.* memory$"
    fails(tmp_path, CheckpointError, message)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")])
def test_no_memory_for_a_buffer(error: Exception, tmp_path: Path, monkeypatch):
    def no_memory(self: Staging, nbytes: int) -> torch.Tensor:
        raise error

    monkeypatch.setattr(Staging, "_allocate", no_memory)
    message = r"loading tensor '.*' into .* failed: (out of|can't allocate) memory"
    fails(tmp_path, CheckpointError, message, torch.bfloat16)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_whoever_watches_may_stop_it(error: type[BaseException], tmp_path: Path):
    def stop(nbytes: int) -> None:
        raise error("enough")

    fails(tmp_path, error, "enough", progress=stop)


def test_a_failure_stops_the_other_threads(tmp_path: Path, monkeypatch):
    """Whatever is queued behind the failure is not read any more."""
    index = save(tmp_path, tensors())
    monkeypatch.setattr(copy_jobs, "DIRECT_BYTES", 8)
    positions: list[int] = []

    def failing(fd: int, buffers: list, position: int) -> int:
        positions.append(position)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    fails(tmp_path, CheckpointError, "Input/output error", index=index, readers=2)
    assert len(positions) <= 2
