"""Brings memory-mapped tensors into the page cache from the background, in file order.

Touching a mapped page that is not there waits for the disk, one place at a time. A few threads that
read the same bytes with large reads keep a disk far busier. What they read is thrown away: it is
in the page cache then, where the next touch finds it. Advice to the kernel would not do, it starts
no more than one read-ahead window for each call. What is in memory already is skipped, so that for
a warm file nothing is left to do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from assembler.weights.tensor_info import TensorInfo

CHUNK_BYTES = 8 << 20  # of one read
PROBES = 4  # places of a chunk that are looked at to tell whether it is in memory
SCRATCH_BYTES = 256 << 10  # stays in a core's cache, however long the read
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)  # Linux


class PagePrefetch:
    """Threads that read tensors into the page cache; they end by themselves, or with the process.

    They own their descriptors and nothing else, and report nothing: where reading fails, whoever
    touches the page learns of it.
    """

    def __init__(self, infos: Iterable[TensorInfo], threads: int) -> None:
        chunks = list(_chunks(infos)) if _NOWAIT else []
        if _seem_resident(chunks):  # threads with nothing to do would only hold up this one
            chunks = []
        self._chunks = iter(chunks)
        self._lock = threading.Lock()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name="page-prefetch", daemon=True)
            for _ in range(min(threads, len(chunks)))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every thread end after the chunk that it is reading."""
        self._stopped = True

    def wait(self) -> None:
        """Wait until everything is in the page cache (or reading it failed)."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        descriptors: dict[Path, int] = {}
        scratch = memoryview(bytearray(SCRATCH_BYTES))
        with ExitStack() as stack:
            while (chunk := self._next()) is not None:
                file, start, stop = chunk
                try:
                    if file not in descriptors:
                        descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                        stack.callback(os.close, descriptors[file])
                    if not _is_resident(descriptors[file], start, stop):
                        _read(descriptors[file], start, stop, scratch)
                except OSError:
                    return

    def _next(self) -> tuple[Path, int, int] | None:
        with self._lock:
            return None if self._stopped else next(self._chunks, None)


def _chunks(infos: Iterable[TensorInfo]) -> Iterator[tuple[Path, int, int]]:
    """The tensors' bytes in file order: (file, start, stop); neighbours share a chunk."""
    file, start, end = None, 0, 0
    for info in sorted(infos, key=lambda info: (str(info.file), info.offset)):
        if info.file != file or info.offset != end:
            yield from _cut(file, start, end)
            file, start = info.file, info.offset
        end = info.end
    yield from _cut(file, start, end)


def _cut(file: Path | None, start: int, end: int) -> Iterator[tuple[Path, int, int]]:
    if file is not None:
        for at in range(start, end, CHUNK_BYTES):
            yield file, at, min(at + CHUNK_BYTES, end)


def _seem_resident(chunks: Iterable[tuple[Path, int, int]]) -> bool:
    """Whether one byte of every chunk can be read without waiting; a file that fails cannot."""
    try:
        for file, group in groupby(chunks, key=lambda chunk: chunk[0]):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not all(_is_resident(descriptor, at, at + 1, probes=0) for _, at, _ in group):
                    return False
            finally:
                os.close(descriptor)
    except OSError:
        return False
    return True


def _is_resident(descriptor: int, start: int, stop: int, probes: int = PROBES) -> bool:
    """Whether a sample of the bytes can be read without waiting for a disk."""
    byte = bytearray(1)
    for n in range(probes + 1):
        at = start + (stop - 1 - start) * n // max(probes, 1)
        try:
            if os.preadv(descriptor, [byte], at, _NOWAIT) == 0:
                return True  # the file has become shorter: there is nothing to fetch
        except BlockingIOError:
            return False
    return True


def _read(descriptor: int, start: int, stop: int, scratch: memoryview) -> None:
    """Read bytes over each other into a buffer that takes a part of them."""
    while start < stop:
        full, rest = divmod(stop - start, len(scratch))
        count = os.preadv(descriptor, [scratch] * full + [scratch[:rest]] * (rest > 0), start)
        if count == 0:
            return
        start += count
