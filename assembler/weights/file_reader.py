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

    def prefetch(self, info: TensorInfo) -> None:
        """Let the kernel start to read a tensor that stays memory-mapped."""
        os.posix_fadvise(self._open(info.file), info.offset, info.nbytes, os.POSIX_FADV_WILLNEED)

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
                advice = os.POSIX_FADV_RANDOM if file in self.scattered else None
                if advice is not None:
                    os.posix_fadvise(descriptor, 0, 0, advice)
            return self._descriptors[file]
