"""Reading the primitive values of a GGUF header one after the other, never past its end.

Every read names what it is after, so that a truncated or damaged file is reported with the file,
the byte and the thing that could not be read.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

from assembler.errors import CheckpointError

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
FETCH_AGAIN = "The file is damaged or incomplete: fetch it again."


class GGUFCursor:
    """A position in the memory map of a little-endian GGUF file."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file = file
        self.data = data
        self.size = len(data)
        self.position = 0

    def fail(self, message: str) -> NoReturn:
        """Raise CheckpointError for what stands at the current position."""
        raise CheckpointError(
            f"{self.file}: byte {self.position:,}: {message.rstrip('.')}. {FETCH_AGAIN}"
        )

    def require(self, nbytes: int, what: str) -> None:
        """Fail unless `nbytes` more bytes are there."""
        if nbytes > self.size - self.position:
            raise CheckpointError(
                f"{self.file}: ends at byte {self.size:,} while reading {what} at byte "
                f"{self.position:,}. {FETCH_AGAIN}"
            )

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes."""
        self.require(nbytes, what)
        start = self.position
        self.position += nbytes
        return self.data[start : self.position]

    def u32(self, what: str) -> int:
        return _U32.unpack(self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack(self.take(8, what))[0]

    def numbers(self, code: str, count: int, what: str) -> list[Any]:
        """`count` numbers of one `struct` format code (`B`, `i`, `f`, ...)."""
        width = struct.calcsize(f"<{code}")
        self.require(width * count, what)
        values = struct.unpack_from(f"<{count}{code}", self.data, self.position)
        self.position += width * count
        return list(values)

    def bools(self, count: int, what: str) -> list[bool]:
        """`count` bytes, each 0 or 1."""
        values = self.numbers("B", count, what)
        if max(values, default=0) > 1:
            self.fail(f"{what} has a truth value that is neither 0 nor 1")
        return [value == 1 for value in values]

    def string(self, what: str) -> str:
        """A UTF-8 string with its length in 8 bytes before it."""
        return self.strings(1, what)[0]

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings in a row. Inlined: vocabularies have hundreds of thousands."""
        self.require(8 * count, what)
        data, size, position = self.data, self.size, self.position
        length_at = _U64.unpack_from
        values = []
        try:
            for _ in range(count):
                start = position + 8
                end = start + length_at(data, position)[0]
                if end > size:
                    break
                values.append(data[start:end].decode())
                position = end
        except struct.error:  # not even 8 bytes were left for the length
            pass
        except UnicodeDecodeError as error:
            self.position = position + 8 + error.start
            self.fail(f"{what} is not UTF-8")
        self.position = position
        if len(values) < count:
            at = what if count == 1 else f"{what}, string {len(values):,} of {count:,}"
            self.require(8, at)
            self.position += 8
            self.require(length_at(data, position)[0], at)
        return values
