"""The values of tensors, as views of memory-mapped files where the format allows it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import torch

from assembler.errors import CheckpointError
from assembler.weights.gguf_dequant import DEQUANTIZERS, block_layout, dequantize
from assembler.weights.quantized import QuantizedInfo
from assembler.weights.tensor_info import TensorInfo

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def check_readable(info: TensorInfo) -> None:
    """Raise CheckpointError for a type that is not supported, or a size that contradicts it."""
    if isinstance(info, QuantizedInfo):
        check_readable(info.values)
        check_readable(info.scales)
        return
    if info.dtype not in TORCH_DTYPES and info.dtype not in DEQUANTIZERS:
        raise CheckpointError(
            f"{info.file}: tensor '{info.name}' has the type {info.dtype}, which cannot be "
            f"read. Supported: {', '.join([*TORCH_DTYPES, *DEQUANTIZERS])}."
        )
    values, nbytes = block_layout(info.dtype)
    if info.numel * nbytes != info.nbytes * values:
        raise CheckpointError(
            f"{info.file}: tensor '{info.name}', {info.dtype} of shape {list(info.shape)}, cannot "
            f"be made of the {info.nbytes:,} bytes that the header gives it."
        )


class MappedFiles:
    """Memory maps of weight files, opened when first needed and kept.

    A tensor returned by `read` keeps its map alive by itself, so `close` (or dropping this object)
    is always safe: a file is unmapped once the last tensor over it is gone.
    """

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, info: TensorInfo) -> torch.Tensor:
        """The tensor on the CPU: a view of the file, or float32 if its format is quantised.

        The view is copy-on-write: writing to it changes neither the file nor another process, but
        is seen by every view over the same map.

        Raises CheckpointError for a type that is not supported and for bytes that are not there.
        """
        if isinstance(info, QuantizedInfo):
            return info.decoded(self.read(info.values), self.read(info.scales))
        check_readable(info)
        if info.numel == 0:
            return torch.empty(info.shape, dtype=TORCH_DTYPES.get(info.dtype, torch.float32))
        data = self._map(info)
        if info.dtype in DEQUANTIZERS:
            raw = np.frombuffer(data, np.uint8, info.nbytes, info.offset)
            return torch.from_numpy(dequantize(raw, info.dtype)).view(info.shape)
        return _view(data, info)

    def close(self) -> None:
        """Forget every map; a later `read` maps its file again."""
        self._maps.clear()

    def _map(self, info: TensorInfo) -> mmap.mmap:
        """The map of the tensor's file, once it is sure to hold the tensor."""
        if info.file not in self._maps:
            try:
                with info.file.open("rb") as stream:
                    # Not read-only: torch warns of tensors it could not write to.
                    self._maps[info.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{info.file}: cannot be mapped: {error}.") from error
        data = self._maps[info.file]
        if info.end > len(data):
            raise CheckpointError(
                f"{info.file}: ends at byte {len(data):,}, before tensor '{info.name}' does "
                f"({info.end:,}). The file is incomplete: fetch it again."
            )
        return data


def _view(data: mmap.mmap, info: TensorInfo) -> torch.Tensor:
    dtype = TORCH_DTYPES[info.dtype]
    raw = torch.frombuffer(data, dtype=torch.uint8, count=info.nbytes, offset=info.offset)
    if info.offset % dtype.itemsize:
        raw = raw.clone()  # kernels expect values at multiples of their size
    return raw.view(dtype).view(info.shape)
