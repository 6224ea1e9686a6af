"""Tensors that are two on disk: small numbers, and the scales that make weights of them.

To a weight map, a plan and a report such a pair is one tensor of floating point. What reads it asks
`covering` which bytes of both hold a range of values, so a slice needs no more than its own blocks
and may cut through them; values come out in float32. Legend of shapes: R rows, C columns of a
matrix; M matrices before each other (a stack of experts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from assembler.weights.ops import Op, Transpose
from assembler.weights.tensor_info import DTYPE_BYTES, TensorInfo

MXFP4_BLOCK = 32  # values that share a scale, in 16 bytes
# The values of four bits, sign in the highest: E2M1 of the OCP Microscaling specification, 1.0.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SCALE_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
VALUE_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class Covering:
    """The bytes of both tensors that hold a range of values, and which values those are."""

    first: int  # number of the first value
    count: int
    value_bytes: range
    scale_bytes: range


class Decoder(Protocol):
    """How values and scales become weights."""

    def covering(self, start: int, stop: int) -> Covering:
        """What has to be read for values `start:stop`, counted in the order of the file."""

    def decode(
        self, part: Covering, values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Fill `out`, [part.count] float32, from the bytes of `part` ([n] uint8 each)."""


@dataclass(frozen=True, slots=True)
class ScaledFloat8:
    """8-bit floats [M, R, C] times one scale for each block of rows and columns.

    A scale for a whole tensor or for each row (channel) is a block of that size; blocks at the end
    of rows and columns may be incomplete (DeepSeek-V3, arXiv 2412.19437, section 3.3).
    """

    rows: int
    columns: int
    block: tuple[int, int]
    value_dtype: str
    scale_dtype: str

    def covering(self, start: int, stop: int) -> Covering:
        first, last = start // self.columns, -(-stop // self.columns)
        pitch = self._scale_columns * DTYPE_BYTES[self.scale_dtype]
        return Covering(
            first * self.columns,
            (last - first) * self.columns,
            range(first * self.columns, last * self.columns),
            range(self._scale_row(first) * pitch, (self._scale_row(last - 1) + 1) * pitch),
        )

    def decode(
        self, part: Covering, values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor
    ) -> None:
        table = _float8_table(self.value_dtype)
        np.take(table, values.numpy(), out=out.numpy(), mode="clip")  # four times torch's cast
        rows = torch.arange(part.first, part.first + part.count, self.columns) // self.columns
        at = self._scale_row(rows) - self._scale_row(part.first // self.columns)
        grid = scales.view(SCALE_DTYPES[self.scale_dtype]).view(-1, self._scale_columns).float()
        of_rows, by_row = grid[at], out.view(-1, self.columns)
        if self._scale_columns * self.block[1] == self.columns:
            by_row.unflatten(1, (self._scale_columns, -1)).mul_(of_rows.unsqueeze(2))
        else:
            by_row.mul_(of_rows.repeat_interleave(self.block[1], 1)[:, : self.columns])

    @property
    def _scale_columns(self) -> int:
        return -(-self.columns // self.block[1])

    def _scale_row(self, row):  # an int or a tensor of them
        matrix = row // self.rows
        return matrix * -(-self.rows // self.block[0]) + (row - matrix * self.rows) // self.block[0]


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """4-bit floats, two a byte with the first in the low bits; 32 share a power of two."""

    def covering(self, start: int, stop: int) -> Covering:
        first, last = start // MXFP4_BLOCK, -(-stop // MXFP4_BLOCK)
        half = MXFP4_BLOCK // 2
        return Covering(
            first * MXFP4_BLOCK,
            (last - first) * MXFP4_BLOCK,
            range(first * half, last * half),
            range(first, last),
        )

    def decode(
        self, part: Covering, values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor
    ) -> None:
        pairs, powers = _mxfp4_tables()
        np.take(pairs, values.numpy(), out=out.numpy().view(pairs.dtype), mode="clip")
        of_blocks = torch.from_numpy(powers[scales.numpy()])
        out.view(-1, MXFP4_BLOCK).mul_(of_blocks.unsqueeze(1))


@dataclass(frozen=True, slots=True)
class QuantizedInfo(TensorInfo):
    """A pair of tensors as the one that they stand for. `nbytes` is that of both."""

    values: TensorInfo
    scales: TensorInfo
    decoder: Decoder
    transposed: bool = False  # in the file the last two dims are swapped

    def decoded(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The weights, float32, from the whole of both tensors."""
        out = torch.empty(math.prod(self.shape))
        part = self.decoder.covering(0, out.numel())
        self.decoder.decode(part, _as_bytes(values), _as_bytes(scales), out)
        return out.view(as_stored(self)[0].shape)


@dataclass(frozen=True, slots=True)
class DequantizedInfo(TensorInfo):
    """A tensor to be written, in place of a pair that was read."""

    loss: str


def as_stored(info: TensorInfo) -> tuple[TensorInfo, tuple[Op, ...]]:
    """The tensor in the order of its file, and the ops that bring it into the map's."""
    if not isinstance(info, QuantizedInfo) or not info.transposed:
        return info, ()
    return replace(info, shape=Transpose().shape(info.shape), transposed=False), (Transpose(),)


def loss_of(info: TensorInfo) -> str | None:
    """What writing the weight of a pair cannot bring back; None for an ordinary tensor."""
    if isinstance(info, QuantizedInfo):
        return f"the quantised form ({info.dtype}): the dequantised weight is written"
    return info.loss if isinstance(info, DequantizedInfo) else None


def tensors_of(info: TensorInfo) -> tuple[TensorInfo, ...]:
    """What is on disk: the two tensors of a pair, or the one."""
    return (info.values, info.scales) if isinstance(info, QuantizedInfo) else (info,)


@lru_cache
def _float8_table(dtype: str) -> np.ndarray:
    """[256] float32: the value of each byte."""
    return torch.arange(256, dtype=torch.uint8).view(VALUE_DTYPES[dtype]).float().numpy()


@lru_cache
def _mxfp4_tables() -> tuple[np.ndarray, np.ndarray]:
    """([256], the two float32 of each byte as one item of 8 bytes; [256] float32, the scales)."""
    nibble = np.array([*E2M1, *(-x for x in E2M1)], np.float32)
    pairs = np.stack([np.tile(nibble, 16), np.repeat(nibble, 16)], 1)
    with np.errstate(over="ignore"):  # a scale of 255 is none
        powers = np.ldexp(np.float32(1), np.arange(256) - 127).astype(np.float32)
    return pairs.view(np.complex64)[:, 0].copy(), powers


def _as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1).view(torch.uint8)
