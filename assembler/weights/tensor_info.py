"""Where one tensor lies on disk, as the header of its file tells it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assembler.weights.checkpoint_files import FETCH_AGAIN
from assembler.weights.finding import Finding

# Bytes of one value, for the element types that are stored as they are. Safetensors and GGUF call
# them alike; GGUF's block formats (Q4_0, ...) are in `gguf_types`.
DTYPE_BYTES: dict[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, shape (torch order), element type, and the bytes that hold it."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # a key of DTYPE_BYTES, or a GGUF block format such as "Q4_1"
    file: Path
    offset: int  # of the first byte, counted from the start of the file
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Offset of the byte after the last one."""
        return self.offset + self.nbytes


@dataclass(frozen=True)
class TensorListing:
    """What the headers of one file, or of all the shards of a checkpoint, say together."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def layout_findings(
    tensors: Iterable[TensorInfo],
    file: Path,
    size: int,
    data_start: int,
    *,
    packed: bool,
    if_truncated: str = FETCH_AGAIN,
) -> list[Finding]:
    """Check that the tensors of a file of `size` bytes lie inside it and apart from each other.

    `packed` formats (safetensors) allow no byte between two tensors nor after the last one.
    """
    findings: list[Finding] = []
    reached, owner = data_start, None  # how far the tensors so far go, and which one goes there
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset < reached and tensor.nbytes:
            other = f"'{owner}'" if owner else "the header"
            message = f"its bytes {tensor.offset:,}..{tensor.end:,} overlap those of {other}"
            findings.append(Finding("index", tensor.name, message, str(file)))
        elif packed and tensor.offset > reached:
            message = f"{tensor.offset - reached:,} bytes before it belong to no tensor"
            findings.append(Finding("index", tensor.name, message, str(file)))
        if tensor.end > reached:
            reached, owner = tensor.end, tensor.name
    if reached > size:
        message = f"the header describes {reached:,} bytes, the file has {size:,}"
        findings.append(Finding("truncated", file.name, message, str(file), if_truncated))
    elif packed and reached < size:
        message = f"{size - reached:,} bytes after the last tensor belong to no tensor"
        findings.append(Finding("index", file.name, message, str(file)))
    return findings
