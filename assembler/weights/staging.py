"""Reused buffers between the file and parameters that values cannot be read straight into.

Values wait here to change dtype, order or device. Each reader thread has buffers of its own, so
memory stays bounded by their number times the largest chunk.
"""

from __future__ import annotations

import math

import torch

from assembler.weights.file_reader import FileReader
from assembler.weights.gguf_dequant import DEQUANTIZERS, block_layout, dequantize
from assembler.weights.quantized import QuantizedInfo
from assembler.weights.regions import Region
from assembler.weights.tensor_data import TORCH_DTYPES
from assembler.weights.tensor_info import TensorInfo


class Staging:
    """The buffers of one reader thread that fills parameters on the CPU."""

    def __init__(self, reader: FileReader) -> None:
        self.reader = reader
        self._buffers: dict[str, torch.Tensor] = {}

    def read(self, info: TensorInfo, start: int, stop: int) -> tuple[torch.Tensor, int]:
        """Values `start:stop` of a tensor.

        Returns:
            A flat tensor, valid until the next read, and the number of its first value: whole
            blocks are read of quantised formats, which come out as float32.
        """
        self._turn()
        if isinstance(info, QuantizedInfo):
            return self._read_pair(info, start, stop)
        values, nbytes = block_layout(info.dtype)
        first, last = start // values, -(-stop // values)
        size = (last - first) * nbytes
        raw = self._buffer("raw", size)
        self.reader.read_into(memoryview(raw.numpy()), info, first * nbytes)
        if info.dtype not in DEQUANTIZERS:
            return raw.view(TORCH_DTYPES[info.dtype]), first * values
        floats = self._buffer("values", (last - first) * values * 4).view(torch.float32)
        dequantize(raw.numpy(), info.dtype, floats.numpy())
        return floats, first * values

    def _read_pair(self, info: QuantizedInfo, start: int, stop: int) -> tuple[torch.Tensor, int]:
        """`read` for values that have their scales in another tensor."""
        part = info.decoder.covering(start, stop)
        raw = []
        for half, tensor, span in (
            ("raw", info.values, part.value_bytes),
            ("scales", info.scales, part.scale_bytes),
        ):
            raw.append(self._buffer(half, len(span)))
            self.reader.read_into(memoryview(raw[-1].numpy()), tensor, span.start)
        floats = self._buffer("values", part.count * 4).view(torch.float32)
        info.decoder.decode(part, *raw, floats)
        return floats, part.first

    def read_columns(self, info: TensorInfo, region: Region) -> torch.Tensor:
        """The values of a region whose rows are `is_narrow`, in its shape; valid as from `read`."""
        self._turn()
        dtype, row = TORCH_DTYPES[info.dtype], region.rows(0, 1)
        width, count = math.prod(row.size), region.size[region.outer]
        raw = self._buffer("raw", count * width * dtype.itemsize)
        start, pitch, width = (
            n * dtype.itemsize for n in (region.offset, region.stride[region.outer], width)
        )
        self.reader.read_rows(memoryview(raw.numpy()), info, start, pitch, width)
        inner = region.size[: region.outer] + region.size[region.outer + 1 :]
        return raw.view(dtype).view(count, *inner).movedim(0, region.outer)

    def copy(self, place: torch.Tensor, values: torch.Tensor) -> None:
        """Store `values`, a view of what `read` gave, in a parameter."""
        place.copy_(values)

    def finish(self) -> None:
        """Wait until everything is stored."""

    def _turn(self) -> None:
        """Called before each read: what was read before may be overwritten."""

    def _buffer(self, name: str, nbytes: int) -> torch.Tensor:
        """Uninitialised bytes; the same memory whenever it is large enough."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < nbytes:
            self._buffers.pop(name, None)
            self._buffers[name] = buffer = self._allocate(nbytes)
        return buffer[:nbytes]

    def _allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)


class PinnedStaging(Staging):
    """The buffers of one reader thread that fills parameters on a CUDA device.

    Two pinned sets take turns, so that the next read overlaps the copy to the device, and values
    change dtype there.
    """

    def __init__(self, reader: FileReader, device: torch.device) -> None:
        super().__init__(reader)
        self.stream = torch.cuda.Stream(device)
        # The caching allocator may hand out memory that earlier kernels still use.
        self.stream.wait_stream(torch.cuda.current_stream(device))
        self._spare: dict[str, torch.Tensor] = {}
        self._done, self._spare_done = torch.cuda.Event(), torch.cuda.Event()

    def _turn(self) -> None:
        self._buffers, self._spare = self._spare, self._buffers
        self._done, self._spare_done = self._spare_done, self._done
        self._done.synchronize()  # its last copy to the device; at once if there was none

    def copy(self, place: torch.Tensor, values: torch.Tensor) -> None:
        with torch.cuda.stream(self.stream):
            if values.dtype != place.dtype:
                values = values.to(place.device, non_blocking=True)
            place.copy_(values, non_blocking=True)
            self._done.record(self.stream)

    def finish(self) -> None:
        self.stream.synchronize()

    def _allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def make_staging(reader: FileReader, device: torch.device) -> Staging:
    """Buffers that suit parameters on `device`."""
    if device.type == "cuda":
        return PinnedStaging(reader, device)
    return Staging(reader)
