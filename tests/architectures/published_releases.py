"""The recorded releases of `tests/fixtures/published/`: config.json and headers, no weights.

A file holds one well-known release as published: its config, its tensors folded over the layers
(`{0-31}` stands for every layer, or every expert), how many values the files hold in all and how
many parameters the language model has, where each of these facts comes from (`source`), and
whether that could be confirmed (`confirmed`).
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
from assembler.weights.tensor_info import DTYPE_BYTES

FOLDER = Path(__file__).parents[1] / "fixtures" / "published"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))

_RANGE = re.compile(r"\{(\d+)-(\d+)\}")


@dataclass(frozen=True)
class Release:
    """One recorded release."""

    name: str
    release: str  # its id on the hub
    conf: str  # the conf that its config must be detected as
    refuses_ranks: tuple[int, ...]  # sizes of 2, 4, 8 over which its heads or rows do not divide
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]  # unfolded
    stored: int  # values in all its tensors, as published
    parameters: int  # of the language model; a pair of values and scales makes one weight

    def index(self) -> CheckpointIndex:
        """The headers of the release, as if its files were in a folder here."""
        return CheckpointIndex(Path(self.name), "safetensors", self.tensors, self.config, {})


def read_release(name: str) -> Release:
    data = json.loads((FOLDER / f"{name}.json").read_text())
    return Release(
        name=name,
        release=data["release"],
        conf=data["conf"],
        refuses_ranks=tuple(data.get("refuses_ranks", ())),
        config=data["config"],
        tensors=_tensors(data, Path(name, "model.safetensors")),
        stored=data["parameters"]["stored"],
        parameters=data["parameters"]["model"],
    )


def _tensors(data: Mapping[str, Any], file: Path) -> dict[str, TensorInfo]:
    """The headers, one after the other. `dtypes` has the types that are not `dtype`, by pattern."""
    tensors, offset = {}, 0
    for folded, shape in data["tensors"].items():
        patterns = data.get("dtypes", {}).items()
        dtype = next((d for pattern, d in patterns if fnmatchcase(folded, pattern)), data["dtype"])
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        for name in _unfold(folded):
            tensors[name] = TensorInfo(name, tuple(shape), dtype, file, offset, nbytes)
            offset += nbytes
    return tensors


def _unfold(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    for index in range(int(match[1]), int(match[2]) + 1):
        yield from _unfold(pattern[: match.start()] + str(index) + pattern[match.end() :])
