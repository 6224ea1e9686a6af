"""What reader threads do: a tensor's pieces cut into jobs of bounded size.

A piece whose values lie in its parameter as they do in the file, in the parameter's own type, is
read straight into it (`DirectRead`): no byte of it is ever anywhere else. Other pieces pass through
a staging buffer a few rows at a time (`StagedRows`): a change of dtype, a transpose, the columns of
a row-parallel weight. Columns are picked on disk where that spares pages (`StagedColumns`): rows of
a few pages have to be read whole. Only what has no strides at all (an ungrouping, a rope
permutation) is staged as one tensor (`StagedTensor`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from assembler.weights.gguf_dequant import block_layout
from assembler.weights.ops import Op, apply_ops
from assembler.weights.plan import Piece, Span
from assembler.weights.quantized import QuantizedInfo
from assembler.weights.regions import Region, are_disjoint, region_of, share_rows
from assembler.weights.staging import Staging
from assembler.weights.tensor_data import TORCH_DTYPES, check_readable
from assembler.weights.tensor_info import TensorInfo

DIRECT_BYTES = 16 << 20  # of one DirectRead
STAGED_BYTES = 4 << 20  # of the values of one StagedRows; more only if a single row is


@dataclass(frozen=True)
class Copy:
    """One piece, with its place in memory and its values' place on disk."""

    piece: Piece
    place: torch.Tensor  # the slice of the parameter
    region: Region | None  # None: its ops do more than pick values


@dataclass(frozen=True)
class DirectRead:
    """Bytes from `start` on of a tensor that fill `buffer`, the memory of a parameter."""

    info: TensorInfo
    start: int
    buffer: memoryview

    def run(self, staging: Staging) -> None:
        staging.reader.read_into(self.buffer, self.info, self.start)


@dataclass(frozen=True)
class StagedRows:
    """One range of a tensor, of which each region goes to its place."""

    info: TensorInfo
    targets: tuple[tuple[torch.Tensor, Region], ...]

    def run(self, staging: Staging) -> None:
        start = min(region.offset for _, region in self.targets)
        stop = max(region.stop for _, region in self.targets)
        values, origin = staging.read(self.info, start, stop)
        for place, region in self.targets:
            staging.copy(place, region.view(values, origin))


@dataclass(frozen=True)
class StagedColumns:
    """The same values of each of some rows, read without what lies between them."""

    info: TensorInfo
    place: torch.Tensor
    region: Region

    def run(self, staging: Staging) -> None:
        staging.copy(self.place, staging.read_columns(self.info, self.region))


@dataclass(frozen=True)
class StagedTensor:
    """A whole tensor, from which each chain of ops makes what goes to its place."""

    info: TensorInfo
    targets: tuple[tuple[torch.Tensor, tuple[Op, ...]], ...]

    def run(self, staging: Staging) -> None:
        values, _ = staging.read(self.info, 0, self.info.numel)
        whole = values[: self.info.numel].view(self.info.shape)
        for place, ops in self.targets:
            staging.copy(place, apply_ops(ops, whole))


Job = DirectRead | StagedRows | StagedColumns | StagedTensor


def tensor_jobs(pieces: Sequence[Piece], parameters: Mapping[str, torch.Tensor]) -> list[Job]:
    """The jobs that load all pieces of one tensor, reading each of its bytes at most once."""
    info = pieces[0].info
    check_readable(info)
    copies = [copy_of(piece, parameters[piece.target]) for piece in pieces]
    copies = [copy for copy in copies if copy.place.numel()]
    regions = [copy.region for copy in copies if copy.region is not None]
    if len(regions) == len(copies):
        if are_disjoint(regions) and all(region.rows_are_apart for region in regions):
            return [job for copy in copies for job in _own_range(copy)]
        if share_rows(regions):
            return list(_staged_rows(info, [(copy.place, copy.region) for copy in copies]))
    return [StagedTensor(info, tuple((copy.place, copy.piece.ops) for copy in copies))]


def slice_of(parameter: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """The part of a parameter that a plan's `target_slice` names, as a view."""
    for span in spans:
        parameter = parameter.narrow(span.dim, span.start, span.stop - span.start)
    return parameter


def copy_of(piece: Piece, parameter: torch.Tensor) -> Copy:
    """Find the piece's place in the parameter and in the file."""
    place = slice_of(parameter.detach(), piece.target_slice)
    assert place.shape == piece.shape, (piece, place.shape)
    dtype = TORCH_DTYPES.get(piece.info.dtype, torch.float32)
    return Copy(piece, place, region_of(piece.ops, piece.info.shape, dtype))


def _own_range(copy: Copy) -> Iterator[Job]:
    """Jobs for a piece that no other piece's bytes lie among."""
    info, place, region = copy.piece.info, copy.place, copy.region
    if not (region.is_contiguous and place.is_contiguous()):
        yield from _staged_rows(info, [(place, region)])
        return
    place, region = place.view(-1), region.flat()
    if place.device.type != "cpu" or TORCH_DTYPES.get(info.dtype) != place.dtype:
        yield from _staged_rows(info, [(place, region)])
        return
    buffer = memoryview(place.view(torch.uint8).numpy())
    start = region.offset * place.dtype.itemsize
    for at in range(0, len(buffer), DIRECT_BYTES):
        yield DirectRead(info, start + at, buffer[at : at + DIRECT_BYTES])


def _staged_rows(
    info: TensorInfo, targets: Sequence[tuple[torch.Tensor, Region]]
) -> Iterator[StagedRows | StagedColumns]:
    """Cut regions that have their rows in common into ranges of a few rows."""
    first = targets[0][1]
    count, pitch = first.size[first.outer], first.stride[first.outer]
    paired = isinstance(info, QuantizedInfo)  # rows of it can be read one by one
    block, nbytes = (1, 4) if paired else block_layout(info.dtype)
    row_bytes = pitch * 4 if block > 1 else pitch * nbytes
    step = max(1, STAGED_BYTES // row_bytes)
    step = -(-step // block) * block if pitch % block else step  # do not cut through a block
    narrow = len(targets) == 1 and not paired and block == 1 and first.is_narrow(nbytes)
    for start in range(0, count, step):
        stop = min(start + step, count)
        parts = tuple(
            (place.narrow(region.outer, start, stop - start), region.rows(start, stop))
            for place, region in targets
        )
        yield StagedColumns(info, *parts[0]) if narrow else StagedRows(info, parts)
