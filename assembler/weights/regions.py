"""Where in a tensor on disk the values lie that a chain of ops brings out.

A chain of views is run once on a meta tensor: what comes out says by its offset and strides which
values it picks, whatever the ops are. So a piece can be read in bounded chunks, and straight into
its parameter where its values lie there as they do in the file, without a word here about any op.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

from assembler.weights.ops import Op, Shape, apply_ops

PAGE_BYTES = mmap.PAGESIZE  # the least that a disk is asked for


@dataclass(frozen=True, slots=True)
class Region:
    """Values of a flat tensor: `offset` and, for each dim of the piece, size and stride."""

    offset: int
    size: Shape
    stride: Shape

    @property
    def stop(self) -> int:
        """One past the last value."""
        steps = zip(self.size, self.stride, strict=True)
        return self.offset + sum((n - 1) * stride for n, stride in steps) + 1

    @property
    def is_contiguous(self) -> bool:
        """Whether the piece's values, in order, are neighbours in the file."""
        expected = 1
        for n, stride in zip(reversed(self.size), reversed(self.stride), strict=True):
            if n > 1 and stride != expected:
                return False
            expected *= n
        return True

    @property
    def outer(self) -> int:
        """The dim whose steps are the longest in the file."""
        return max(range(len(self.size)), key=lambda d: (self.size[d] > 1, self.stride[d]))

    @property
    def rows_are_apart(self) -> bool:
        """Whether each index of the outer dim has a range of the file to itself."""
        inner = [
            (n - 1) * stride
            for d, (n, stride) in enumerate(zip(self.size, self.stride, strict=True))
            if d != self.outer
        ]
        return self.size[self.outer] == 1 or sum(inner) < self.stride[self.outer]

    def is_narrow(self, itemsize: int) -> bool:
        """Whether reading its rows one by one leaves at least a quarter of the pages on disk."""
        row = self.rows(0, 1)
        pages = -(-(row.stop - row.offset) * itemsize // PAGE_BYTES) + 1  # rows are not aligned
        pitch = self.stride[self.outer] * itemsize
        return row.is_contiguous and pages * PAGE_BYTES <= 0.75 * pitch

    def rows(self, start: int, stop: int) -> Region:
        """Indices `start:stop` of the outer dim."""
        at = self.outer
        size = (*self.size[:at], stop - start, *self.size[at + 1 :])
        return Region(self.offset + start * self.stride[at], size, self.stride)

    def flat(self) -> Region:
        """A contiguous region as one dim."""
        return Region(self.offset, (math.prod(self.size),), (1,))

    def view(self, values: torch.Tensor, origin: int) -> torch.Tensor:
        """The region in `values`, a flat tensor whose first value is number `origin`."""
        return values.as_strided(self.size, self.stride, self.offset - origin)


@lru_cache(maxsize=4096)  # layers repeat
def region_of(ops: tuple[Op, ...], shape: Shape, dtype: torch.dtype) -> Region | None:
    """What `ops` pick of a tensor; None if they change values or an order that has no strides."""
    source = torch.empty(shape, dtype=dtype, device="meta")
    result = apply_ops(ops, source)
    same_memory = result.untyped_storage()._cdata == source.untyped_storage()._cdata
    if not same_memory or result.dtype != dtype or result.numel() == 0:
        return None
    if result.dim() == 0:
        return Region(result.storage_offset(), (1,), (1,))
    return Region(result.storage_offset(), tuple(result.shape), result.stride())


def are_disjoint(regions: Sequence[Region]) -> bool:
    """Whether no two share a byte of the ranges that they span."""
    spans = sorted((region.offset, region.stop) for region in regions)
    return all(a[1] <= b[0] for a, b in pairwise(spans))


def share_rows(regions: Sequence[Region]) -> bool:
    """Whether all are columns of the same rows: one pass over the rows serves them together."""
    first = regions[0]
    pitch, count = first.stride[first.outer], first.size[first.outer]
    rows = [(r.stride[r.outer], r.size[r.outer]) == (pitch, count) for r in regions]
    begin = min(r.offset for r in regions)
    fits = [r.rows(0, 1).stop - begin <= pitch for r in regions]
    return all(rows) and all(fits)
