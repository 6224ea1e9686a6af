"""Positioned reads of weight files into memory that is already there.

Every file is opened once and shared by all reader threads: `preadv` takes its position as an
argument, and releases the interpreter's lock while the kernel copies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from pathlib import Path

from assembler.errors import CheckpointError
from assembler.weights.tensor_info import TensorInfo


class FileReader:
    """Reads bytes of tensors straight into buffers; counts them in `nbytes_read`."""

    def __init__(self, scattered: Collection[Path] = ()) -> None:
        """`scattered` files are wanted only in parts: the kernel must not read ahead in them."""
        self.scattered = frozenset(scattered)
        self.nbytes_read = 0
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read_into(self, buffer: memoryview, info: TensorInfo, start: int) -> None:
        """Fill `buffer` with the tensor's bytes from its byte `start` on.

        Raises:
            CheckpointError: the file cannot be opened, or ends too early.
            OSError: the disk fails.
        """
        descriptor = self._open(info.file)
        position, done = info.offset + start, 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], position + done)
            if count == 0:
                size = os.fstat(descriptor).st_size
                raise CheckpointError(
                    f"{info.file}: ends at byte {size:,}, before tensor '{info.name}' does "
                    f"({info.end:,}). The file is incomplete: fetch it again."
                )
            done += count
        with self._lock:
            self.nbytes_read += done

    def read_rows(
        self, buffer: memoryview, info: TensorInfo, start: int, pitch: int, width: int
    ) -> None:
        """Fill `buffer` with `width` bytes of each row: the tensor's from `start`, `pitch` apart.

        The disk is asked for all rows before the first is waited for.

        Raises what `read_into` raises.
        """
        rows = range(len(buffer) // width)
        descriptor = self._open(info.file)
        for n in rows:
            _advise(descriptor, info.offset + start + n * pitch, width, "POSIX_FADV_WILLNEED")
        for n in rows:
            self.read_into(buffer[n * width : (n + 1) * width], info, start + n * pitch)

    def close(self) -> None:
        """Close every file. No read may be under way."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                try:
                    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from error
                self._descriptors[file] = descriptor
                if file in self.scattered:
                    _advise(descriptor, 0, 0, "POSIX_FADV_RANDOM")
            return self._descriptors[file]


def _advise(descriptor: int, start: int, nbytes: int, advice: str) -> None:
    """`posix_fadvise`, where the system has it."""
    if hasattr(os, advice):
        os.posix_fadvise(descriptor, start, nbytes, getattr(os, advice))
