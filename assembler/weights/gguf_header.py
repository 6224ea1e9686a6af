"""The header of one GGUF file: metadata and tensor list, through a memory map.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
Only the pages of the header are touched.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assembler.errors import CheckpointError
from assembler.weights.finding import Finding
from assembler.weights.gguf_cursor import GGUFCursor
from assembler.weights.gguf_types import GGML_TYPES
from assembler.weights.tensor_info import TensorInfo, layout_findings

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_ARRAY_NESTING = 4

# Metadata value types by their number in the file; the numeric ones with their `struct` codes:
# uint8, int8, uint16, int16, uint32, int32, float32, uint64, int64, float64.
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
NUMBER_CODES = dict(zip((0, 1, 2, 3, UINT32, 5, 6, 10, 11, 12), "BbHhIifQqd", strict=True))


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of itself and of its tensors."""

    file: Path
    version: int
    metadata: dict[str, Any]  # numbers, booleans, strings and lists of them
    tensors: dict[str, TensorInfo]
    alignment: int
    data_offset: int  # where the tensor data starts
    findings: tuple[Finding, ...]


def read_gguf_header(file: Path) -> GGUFHeader:
    """Read the header of `file`.

    Raises CheckpointError, naming the file, what was being read and the byte, for a file that ends
    inside its header, is big-endian, of an unknown version, or no GGUF file at all.
    """
    try:
        with file.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise CheckpointError(f"{file}: the file is empty.") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}.") from error
    with data:
        return _read_header(GGUFCursor(file, data))


def _read_header(cursor: GGUFCursor) -> GGUFHeader:
    version = _read_version(cursor)
    tensor_count = cursor.u64("the number of tensors")
    metadata_count = cursor.u64("the number of metadata entries")
    findings: list[Finding] = []
    metadata, types = _read_metadata(cursor, metadata_count, findings)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if types.get("general.alignment", UINT32) != UINT32 or alignment.bit_count() != 1:
        cursor.fail(f"general.alignment must be a uint32 power of two, not {alignment!r}")
    entries = [_read_tensor_entry(cursor, i, tensor_count) for i in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment  # rounded up
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_id, offset in entries:
        if name in tensors:
            message = "is written twice in the header"
            findings.append(Finding("duplicate", name, message, str(cursor.file)))
        if offset % alignment:
            message = f"its offset {offset:,} is no multiple of the alignment, {alignment}"
            findings.append(Finding("index", name, message, str(cursor.file)))
        tensors[name] = _tensor_info(cursor.file, name, shape, type_id, data_offset + offset)
    findings += layout_findings(
        tensors.values(), cursor.file, cursor.size, data_offset, packed=False
    )
    return GGUFHeader(
        cursor.file, version, metadata, tensors, alignment, data_offset, tuple(findings)
    )


def _read_version(cursor: GGUFCursor) -> int:
    """Check the magic number, byte order and version."""
    magic = cursor.take(4, "the magic number")
    if magic == b"vers":
        raise CheckpointError(
            f"{cursor.file}: this is a Git LFS pointer, not the weights. Run `git lfs pull`."
        )
    if magic != MAGIC:
        raise CheckpointError(
            f"{cursor.file}: begins with {magic!r}, not {MAGIC!r}: this is no GGUF file. Formats "
            "older than GGUF must be converted with the tools of llama.cpp."
        )
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise CheckpointError(
            f"{cursor.file}: this GGUF file is big-endian, which is not supported. Convert it with "
            "llama.cpp's gguf_convert_endian.py."
        )
    if version not in SUPPORTED_VERSIONS:
        known = " and ".join(map(str, SUPPORTED_VERSIONS))
        raise CheckpointError(
            f"{cursor.file}: GGUF version {version} is not supported, only {known} are. "
            "Convert the model again with a current llama.cpp."
        )
    return version


def _read_metadata(
    cursor: GGUFCursor, count: int, findings: list[Finding]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The metadata, and the type number of each value."""
    metadata: dict[str, Any] = {}
    types: dict[str, int] = {}
    for i in range(count):
        key = cursor.string(f"the key of metadata entry {i:,} of {count:,}")
        if key in metadata:
            message = "is written twice in the metadata"
            findings.append(Finding("duplicate", key, message, str(cursor.file)))
        types[key] = cursor.u32(f"the type of metadata '{key}'")
        metadata[key] = _read_values(cursor, types[key], 1, f"metadata '{key}'")[0]
    return metadata, types


def _read_values(
    cursor: GGUFCursor, type_id: int, count: int, what: str, nesting: int = 0
) -> list[Any]:
    """`count` metadata values of one type."""
    if type_id in NUMBER_CODES:
        return cursor.numbers(NUMBER_CODES[type_id], count, what)
    if type_id == STRING:
        return cursor.strings(count, what)
    if type_id == BOOL:
        return cursor.bools(count, what)
    if type_id != ARRAY:
        cursor.fail(f"{what} has the unknown type {type_id}")
    if nesting == MAX_ARRAY_NESTING:
        cursor.fail(f"{what} nests arrays deeper than {MAX_ARRAY_NESTING}")
    arrays = []
    for _ in range(count):
        item_type = cursor.u32(f"the item type of {what}")
        length = cursor.u64(f"the length of {what}")
        arrays.append(_read_values(cursor, item_type, length, what, nesting + 1))
    return arrays


def _read_tensor_entry(
    cursor: GGUFCursor, i: int, count: int
) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape in torch order, type number, offset from the start of the data)."""
    name = cursor.string(f"the name of tensor {i:,} of {count:,}")
    what = f"the entry of tensor '{name}'"
    num_dims = cursor.u32(what)
    if num_dims > MAX_DIMS:
        cursor.fail(f"{what} has {num_dims:,} dimensions, more than {MAX_DIMS}")
    ggml_order = cursor.numbers("Q", num_dims, what)  # the contiguous dimension comes first
    return name, tuple(reversed(ggml_order)), cursor.u32(what), cursor.u64(what)


def _tensor_info(
    file: Path, name: str, shape: tuple[int, ...], type_id: int, offset: int
) -> TensorInfo:
    ggml_type = GGML_TYPES.get(type_id)
    if ggml_type is None:
        known = ", ".join(t.name for t in GGML_TYPES.values())
        raise CheckpointError(
            f"{file}: tensor '{name}' has the unknown ggml type number {type_id}. Known: {known}."
        )
    row = shape[-1] if shape else 1
    if row % ggml_type.block_size:
        raise CheckpointError(
            f"{file}: tensor '{name}' has rows of {row} values, which {ggml_type.name} cannot "
            f"store: its blocks hold {ggml_type.block_size}."
        )
    nbytes = ggml_type.nbytes(math.prod(shape))
    return TensorInfo(name, shape, ggml_type.name, file, offset, nbytes)
