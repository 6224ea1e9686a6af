"""The header of one safetensors file: 8 bytes of length, then JSON (https://hf.co/docs/safetensors).

Only the header is read. What makes it unreadable is an error; what it says wrongly about a tensor
is a finding, so that one report can list everything.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from assembler.errors import CheckpointError
from assembler.weights.checkpoint_files import LENGTH_BYTES, MAX_HEADER_BYTES, FileStart
from assembler.weights.finding import Finding
from assembler.weights.tensor_info import (
    DTYPE_BYTES,
    TensorInfo,
    TensorListing,
    layout_findings,
)

GIT_LFS_MAGIC = b"version "  # how a pointer file begins, cut to LENGTH_BYTES
FETCH_AGAIN = "The file is damaged or is no safetensors file: fetch it again."


def read_safetensors_header(start: FileStart) -> TensorListing:
    """List the tensors of one safetensors file by how it begins.

    `metadata` is the file's `__metadata__`. Raises CheckpointError, naming the file and the byte,
    when no header can be made out.
    """
    file, raw = start.file, _header_bytes(start)
    header, repeated = _parse_header(file, raw)
    findings = [
        Finding("duplicate", key, "is written twice in the header", str(file)) for key in repeated
    ]
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file}: `__metadata__` of the header is not an object.")
    data_start = LENGTH_BYTES + len(raw)
    tensors = {
        name: _tensor_info(file, name, entry, data_start, findings)
        for name, entry in header.items()
    }
    findings += layout_findings(
        tensors.values(),
        file,
        start.size,
        data_start,
        packed=True,
        if_truncated=start.if_truncated,
    )
    return TensorListing(tensors, metadata, tuple(findings))


def _header_bytes(start: FileStart) -> bytes:
    """The JSON of the header, as it stands in the file."""
    file, raw = start.file, start.content[LENGTH_BYTES:]
    first = start.content[:LENGTH_BYTES]
    length = int.from_bytes(first, "little")
    if first == GIT_LFS_MAGIC:
        raise CheckpointError(
            f"{file}: this is a Git LFS pointer, not the weights. Run `git lfs pull`."
        )
    if len(first) < LENGTH_BYTES:
        raise CheckpointError(
            f"{file}: ends at byte {len(first)}, inside the {LENGTH_BYTES}-byte length of the "
            f"header. {FETCH_AGAIN}"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file}: byte 0 gives the header {length:,} bytes, more than the format's "
            f"{MAX_HEADER_BYTES:,}. {FETCH_AGAIN}"
        )
    if len(raw) < length:
        raise CheckpointError(
            f"{file}: ends at byte {LENGTH_BYTES + len(raw):,}, inside its header of {length:,} "
            f"bytes. {FETCH_AGAIN}"
        )
    if not raw.startswith(b"{"):
        raise CheckpointError(
            f"{file}: byte {LENGTH_BYTES} does not begin a JSON object. {FETCH_AGAIN}"
        )
    return raw


def _parse_header(file: Path, raw: bytes) -> tuple[dict[str, Any], list[str]]:
    """The header as a dict, and the keys that it writes more than once."""
    repeated: list[str] = []

    def keep_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) < len(pairs):
            seen: set[str] = set()
            repeated.extend(key for key, _ in pairs if key in seen or seen.add(key))
        return unique

    try:
        return json.loads(raw.decode(), object_pairs_hook=keep_repeated), repeated
    except UnicodeDecodeError as error:
        byte, reason = error.start, "not UTF-8"
    except json.JSONDecodeError as error:
        byte, reason = len(error.doc[: error.pos].encode()), error.msg
    except (ValueError, RecursionError) as error:  # absurd numbers or nesting
        byte, reason = 0, str(error)
    raise CheckpointError(
        f"{file}: byte {LENGTH_BYTES + byte:,} of the header is not valid JSON ({reason}). "
        f"{FETCH_AGAIN}"
    )


def _tensor_info(
    file: Path, name: str, entry: Any, data_start: int, findings: list[Finding]
) -> TensorInfo:
    """Check one entry of the header; what can still be reported as a finding is added to them."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes_fit = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        sizes_fit = False
    if not sizes_fit or type(dtype) is not str:
        raise CheckpointError(
            f"{file}: the header's entry of tensor '{name}' is not "
            f"{{dtype, shape, data_offsets: [begin, end]}} with sizes >= 0. {FETCH_AGAIN}"
        )
    width = DTYPE_BYTES.get(dtype)
    if begin > end:
        message = f"ends at byte {end:,} of the data, before it begins at {begin:,}"
        findings.append(Finding("index", name, message, str(file)))
        end = begin
    elif width is None:
        hint = f"Supported: {', '.join(DTYPE_BYTES)}."
        findings.append(
            Finding("index", name, f"has the unsupported dtype {dtype}", str(file), hint)
        )
    elif math.prod(shape) * width != end - begin:
        message = (
            f"{dtype} of shape {list(shape)} takes {math.prod(shape) * width:,} bytes, "
            f"the header gives it {end - begin:,}"
        )
        findings.append(Finding("index", name, message, str(file)))
    return TensorInfo(name, tuple(shape), dtype, file, data_start + begin, end - begin)
