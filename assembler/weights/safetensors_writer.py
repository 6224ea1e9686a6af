"""Writes safetensors files tensor by tensor, so that no more than one is in memory.

The header lists every tensor's place before its values (https://hf.co/docs/safetensors), and a plan
knows names, shapes and types beforehand; so the values can follow one after the other.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from assembler.weights.safetensors_header import LENGTH_BYTES
from assembler.weights.tensor_data import TORCH_DTYPES

METADATA = {"format": "pt"}  # what transformers asks for


class Described(Protocol):
    """What a header says of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...


def write_safetensors(
    file: Path,
    tensors: Sequence[Described],
    value_of: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Write `tensors` to `file`, asking `value_of(name)` for one value after the other.

    Wide types come first, as the reference implementation writes them: every value then lies at a
    multiple of its size.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    with file.open("wb") as stream:
        stream.write(_header(ordered, metadata))
        for tensor in ordered:
            value = value_of(tensor.name)
            assert (tuple(value.shape), value.dtype) == (tensor.shape, tensor.dtype), tensor.name
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            stream.write(memoryview(raw.numpy()))
        stream.flush()
        os.fsync(stream.fileno())  # before the folder gets its name


def _header(tensors: Sequence[Described], metadata: Mapping[str, str]) -> bytes:
    """The length of the JSON, and the JSON padded so that values begin at a multiple of 8."""
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[tensor.name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
