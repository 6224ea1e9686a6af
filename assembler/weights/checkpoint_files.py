"""The files of a checkpoint folder as its headers are read: on this machine, or on the Hub.

What reads headers asks for names, for JSON and for how the weight files begin, and never learns
where those lie. So a report on a Hub id equals the report on a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from assembler.errors import CheckpointError

LENGTH_BYTES = 8  # at the start of a safetensors file: the length of its header, little-endian
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
FETCH_AGAIN = "The download or copy is incomplete: fetch the file again."


@dataclass(frozen=True)
class FileStart:
    """How a safetensors file begins: the length of its header, the header, or less if it ends."""

    file: Path  # as messages name it
    content: bytes
    size: int  # of the whole file
    if_truncated: str = FETCH_AGAIN  # what to do about a file that ends before its tensors do


class CheckpointFiles(Protocol):
    """The files of one folder. All but its weights can be read whole."""

    root: Path  # the folder, as messages name it
    if_absent: str  # what to do about a file that should be there

    def names(self) -> list[str]:
        """The files directly in the folder, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is such a file, in the folder or below it."""

    def read(self, name: str) -> bytes:
        """All of one file; CheckpointError if that fails."""

    def starts(self, names: Iterable[str]) -> Iterator[FileStart]:
        """How each of these safetensors files begins, in their order."""


class LocalFiles:
    """The files of a folder on this machine."""

    if_absent = "Fetch it into the folder."

    def __init__(self, folder: Path) -> None:
        self.root = folder

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.root.iterdir() if path.is_file())
        except PermissionError as error:
            raise CheckpointError(f"{self.root}: cannot be read: {error.strerror}.") from error

    def has(self, name: str) -> bool:
        file = self.root / name
        try:
            return file.is_file()
        except PermissionError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from error

    def read(self, name: str) -> bytes:
        file = self.root / name
        try:
            return file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from error

    def starts(self, names: Iterable[str]) -> Iterator[FileStart]:
        return (read_start(self.root / name) for name in names)


def start_length(first: bytes) -> int:
    """How many bytes of a safetensors file lead up to its data, by the first 8 of them.

    A length beyond what the format allows asks for no more than those 8.
    """
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    return LENGTH_BYTES + (length if length <= MAX_HEADER_BYTES else 0)


def read_start(file: Path) -> FileStart:
    """How the safetensors file at `file` begins; CheckpointError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            first = stream.read(LENGTH_BYTES)
            content = first + stream.read(start_length(first) - LENGTH_BYTES)
            size = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from error
    return FileStart(file, content, size)
