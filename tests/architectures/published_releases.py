"""The recorded releases of `tests/fixtures/published/`: config.json and headers, no weights.

A file holds one well-known release as published: its config, its tensors folded over the layers
(`{0-31}` stands for every layer, or every expert), how many values the files hold in all and how
many of them are the model's parameters, and where each of these facts comes from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from assembler.weights.index import CheckpointIndex, TensorInfo

FOLDER = Path(__file__).parents[1] / "fixtures" / "published"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))

_RANGE = re.compile(r"\{(\d+)-(\d+)\}")
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "BOOL": 1}


@dataclass(frozen=True)
class Release:
    """One recorded release."""

    name: str
    release: str  # its id on the hub
    conf: str  # the conf that its config must be detected as
    refuses_ranks: tuple[int, ...]  # sizes of 2, 4, 8 over which its heads or rows do not divide
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]  # unfolded
    dtype: str
    dtypes: Mapping[str, str]  # by name pattern, where they differ from `dtype`
    stored: int  # values in all its tensors, as published
    parameters: int  # those that are the language model's

    def index(self) -> CheckpointIndex:
        """The headers of the release, as if its files were in a folder here."""
        tensors, offset = {}, 0
        for name, shape in self.tensors.items():
            dtype = next((d for p, d in self.dtypes.items() if fnmatchcase(name, p)), self.dtype)
            nbytes = math.prod(shape) * _DTYPE_BYTES[dtype]
            file = Path(self.name, "model.safetensors")
            tensors[name] = TensorInfo(name, shape, dtype, file, offset, nbytes)
            offset += nbytes
        return CheckpointIndex(Path(self.name), "safetensors", tensors, self.config, {})


def read_release(name: str) -> Release:
    data = json.loads((FOLDER / f"{name}.json").read_text())
    tensors = {
        tensor: tuple(shape)
        for pattern, shape in data["tensors"].items()
        for tensor in _unfold(pattern)
    }
    return Release(
        name=name,
        release=data["release"],
        conf=data["conf"],
        refuses_ranks=tuple(data.get("refuses_ranks", ())),
        config=data["config"],
        tensors=tensors,
        dtype=data["dtype"],
        dtypes=data.get("dtypes", {}),
        stored=data["parameters"]["stored"],
        parameters=data["parameters"]["model"],
    )


def _unfold(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    for index in range(int(match[1]), int(match[2]) + 1):
        yield from _unfold(pattern[: match.start()] + str(index) + pattern[match.end() :])
