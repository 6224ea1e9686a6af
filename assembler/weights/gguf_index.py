"""A GGUF checkpoint as one list of tensors, also when llama.cpp split it over several files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from assembler.errors import CheckpointError
from assembler.weights.finding import Finding
from assembler.weights.gguf_dequant import DEQUANTIZERS
from assembler.weights.gguf_header import GGUFHeader, read_gguf_header
from assembler.weights.tensor_info import DTYPE_BYTES, TensorInfo, TensorListing

SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_gguf(file: Path) -> TensorListing:
    """List the tensors of a GGUF file and, if it is one of a split model, of its sibling files.

    `metadata` is that of the first file of the split, which is the complete one.
    """
    names = _split_names(file)
    headers: list[GGUFHeader] = []
    findings: list[Finding] = []
    for name in names:
        sibling = file.with_name(name)
        if sibling.is_file():
            headers.append(read_gguf_header(sibling))
        else:
            message = f"is absent: {file.name} is one of {len(names)} files of a split model"
            hint = "Fetch it into the folder."
            findings.append(Finding("index", name, message, str(file.parent), hint))
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.tensors.items():
            first = tensors.setdefault(name, info)
            if first is not info:
                message = f"is both in {first.file.name} and in {info.file.name}"
                findings.append(Finding("duplicate", name, message, str(file.parent)))
        findings += header.findings
    findings += _unreadable_types(tensors.values(), file)
    return TensorListing(tensors, headers[0].metadata, tuple(findings))


def read_gguf_folder(folder: Path) -> TensorListing:
    """List the one GGUF model in `folder`; CheckpointError if there are several to choose from."""
    files = sorted(folder.glob("*.gguf"))
    models = {_split_names(file)[0] for file in files}
    if len(models) > 1:
        raise CheckpointError(
            f"{folder}: holds several GGUF models ({', '.join(f.name for f in files[:8])}). "
            "Pass the one you mean."
        )
    return read_gguf(files[0])


def _split_names(file: Path) -> list[str]:
    """The names of all files of the split model that `file` is of; its own name if not split."""
    split = SPLIT_NAME.fullmatch(file.name)
    if split is None:
        return [file.name]
    if not 1 <= int(split["number"]) <= int(split["count"]):
        return [file.name]
    numbers = range(1, int(split["count"]) + 1)
    return [f"{split['stem']}-{n:05d}-of-{split['count']}.gguf" for n in numbers]


def _unreadable_types(tensors: Iterable[TensorInfo], file: Path) -> list[Finding]:
    """One finding for each block format in use that cannot be dequantised."""
    by_type: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.dtype not in DTYPE_BYTES and tensor.dtype not in DEQUANTIZERS:
            by_type.setdefault(tensor.dtype, []).append(tensor.name)
    hint = f"Supported: {', '.join([*DTYPE_BYTES, *DEQUANTIZERS])}."
    return [
        Finding(
            "index",
            names[0],
            f"has the type {dtype}, which cannot be dequantised"
            + (f" (nor {len(names) - 1} more of it)" if len(names) > 1 else ""),
            str(file),
            hint,
        )
        for dtype, names in by_type.items()
    ]
