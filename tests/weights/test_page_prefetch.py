"""Fetching mapped tensors into the page cache: which bytes are read, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from assembler.weights import page_prefetch
from assembler.weights.page_prefetch import PagePrefetch
from assembler.weights.tensor_info import TensorInfo

pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="asks Linux what is cached")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Start and stop of every read that waits for the disk; probes say that nothing is cached."""
    seen: list[tuple[int, int]] = []
    preadv = os.preadv

    def watched(descriptor: int, buffers: list[memoryview], at: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        count = preadv(descriptor, buffers, at)
        seen.append((at, at + count))
        return count

    monkeypatch.setattr(os, "preadv", watched)
    monkeypatch.setattr(page_prefetch, "CHUNK_BYTES", 100)
    monkeypatch.setattr(page_prefetch, "SCRATCH_BYTES", 32)
    return seen


@pytest.fixture
def tensor(tmp_path: Path) -> Callable[[int, int], TensorInfo]:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(1000))
    return lambda start, stop: TensorInfo(
        f"at{start}", (stop - start,), "U8", file, start, stop - start
    )


def test_reads_in_file_order_and_no_byte_between(reads, tensor):
    PagePrefetch([tensor(500, 610), tensor(8, 150), tensor(150, 250)], threads=1).wait()
    assert reads == [(8, 108), (108, 208), (208, 250), (500, 600), (600, 610)]


def test_several_threads_share_the_bytes(reads, tensor):
    PagePrefetch([tensor(0, 1000)], threads=3).wait()
    assert sorted(reads) == [(n, n + 100) for n in range(0, 1000, 100)]


def test_what_is_in_memory_is_not_read_again(tensor, monkeypatch: pytest.MonkeyPatch):
    flags: list[int] = []

    def cached(descriptor: int, buffers: list[memoryview], at: int, flag: int = 0) -> int:
        flags.append(flag)
        return 1

    monkeypatch.setattr(os, "preadv", cached)
    prefetch = PagePrefetch([tensor(0, 1000)], threads=1)
    assert prefetch._threads == []
    assert flags == [os.RWF_NOWAIT]  # of one chunk


def test_one_chunk_that_is_not_in_memory_is_fetched(tensor, monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    preadv = os.preadv

    def partly(descriptor: int, buffers: list[memoryview], at: int, flag: int = 0) -> int:
        if flag and 300 <= at < 400:
            raise BlockingIOError
        if not flag:
            read.append(at)
        return preadv(descriptor, buffers, at)

    monkeypatch.setattr(os, "preadv", partly)
    monkeypatch.setattr(page_prefetch, "CHUNK_BYTES", 100)
    PagePrefetch([tensor(0, 1000)], threads=2).wait()
    assert read == [300]


def test_nothing_to_fetch_starts_no_thread(reads):
    prefetch = PagePrefetch([], threads=4)
    prefetch.wait()
    assert reads == []


def test_it_can_be_stopped(reads, tensor, monkeypatch: pytest.MonkeyPatch):
    begun: list[PagePrefetch] = []
    read = page_prefetch._read

    def one_then_stop(*arguments: object) -> None:
        read(*arguments)
        begun[0].stop()

    monkeypatch.setattr(page_prefetch, "_read", one_then_stop)
    monkeypatch.setattr("threading.Thread.start", lambda thread: None)
    begun.append(PagePrefetch([tensor(0, 1000)], threads=1))
    begun[0]._work()
    assert reads == [(0, 100)]


def test_a_missing_or_shorter_file_is_left_to_those_who_read_it(reads, tensor, tmp_path: Path):
    PagePrefetch([tensor(950, 2000)], threads=1).wait()
    assert reads[0] == (950, 1000)
    (tmp_path / "model.safetensors").unlink()
    PagePrefetch([tensor(0, 1000)], threads=2).wait()
