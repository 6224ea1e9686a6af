"""GGUF block formats back to float32, bit for bit as llama.cpp's reference does it.

A row of weights is a row of blocks; a block holds 32 values (256 for the K formats), as small
integers with one float16 scale or more. The layouts are those of ggml-quants.c. The work goes in
chunks whose temporaries stay in the cache: whole tensors at a time it is memory-bound.

Legend of shapes: n blocks of a chunk, S sub-blocks of a K block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from assembler.weights.gguf_types import GGML_TYPES
from assembler.weights.tensor_info import DTYPE_BYTES

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

CHUNK_VALUES = 1 << 17  # half a MiB of float32
_GGML_TYPES_BY_NAME = {ggml_type.name: ggml_type for ggml_type in GGML_TYPES.values()}


def block_layout(dtype: str) -> tuple[int, int]:
    """(values, bytes) of one block of the format; plain types have blocks of one value."""
    if dtype in DTYPE_BYTES:
        return 1, DTYPE_BYTES[dtype]
    ggml_type = _GGML_TYPES_BY_NAME[dtype]
    return ggml_type.block_size, ggml_type.block_bytes


def dequantize(data: U8, dtype: str, out: F32 | None = None) -> F32:
    """The values of `data`, whole blocks of the format `dtype` (a key of DEQUANTIZERS).

    Args:
        data: [blocks * block_bytes] uint8, as in the file.
        dtype: for example "Q4_1".
        out: where to store them, [blocks * block_size]; new memory if None.

    Returns:
        [blocks * block_size] float32.
    """
    size, nbytes = block_layout(dtype)
    fill = DEQUANTIZERS[dtype]
    blocks = data.reshape(-1, nbytes)
    values = np.empty(len(blocks) * size, np.float32) if out is None else out
    values = values.reshape(-1, size)
    step = CHUNK_VALUES // size
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be inf or nan
        for start in range(0, len(blocks), step):
            fill(blocks[start : start + step], values[start : start + step])
    return values.reshape(-1)


def _float16(fields: U8) -> F32:
    """[n, 2 * k] bytes of a chunk -> [n, k] float32."""
    return fields.view(np.float16).astype(np.float32)


def _nibbles(packed: U8) -> U8:
    """[..., m] bytes -> [..., 2, m]: the low halves, then the high ones."""
    halves = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 0x0F, out=halves[..., 0, :])
    np.right_shift(packed, 4, out=halves[..., 1, :])
    return halves


def _fifth_bits(packed: U8) -> U8:
    """[n, 4] bytes, one bit a value -> [n, 32] of 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _fill_q4_0(blocks: U8, values: F32) -> None:
    values[...] = _nibbles(blocks[:, 2:]).reshape(-1, 32)
    values -= 8
    values *= _float16(blocks[:, :2])


def _fill_q4_1(blocks: U8, values: F32) -> None:
    scale_and_min = _float16(blocks[:, :4])
    values[...] = _nibbles(blocks[:, 4:]).reshape(-1, 32)
    values *= scale_and_min[:, :1]
    values += scale_and_min[:, 1:]


def _fill_q5_0(blocks: U8, values: F32) -> None:
    low = _nibbles(blocks[:, 6:]).reshape(-1, 32)
    values[...] = np.bitwise_or(low, _fifth_bits(blocks[:, 2:6]), out=low)
    values -= 16
    values *= _float16(blocks[:, :2])


def _fill_q5_1(blocks: U8, values: F32) -> None:
    scale_and_min = _float16(blocks[:, :4])
    low = _nibbles(blocks[:, 8:]).reshape(-1, 32)
    values[...] = np.bitwise_or(low, _fifth_bits(blocks[:, 4:8]), out=low)
    values *= scale_and_min[:, :1]
    values += scale_and_min[:, 1:]


def _fill_q8_0(blocks: U8, values: F32) -> None:
    values[...] = blocks[:, 2:].view(np.int8)
    values *= _float16(blocks[:, :2])


def _scales_and_mins(blocks: U8) -> tuple[F32, F32]:
    """The scale and the minimum of each of the 8 sub-blocks of Q4_K and Q5_K, [n, 8, 1] each.

    Six bits each, in 12 bytes: bytes 0-3 hold scales 0-3 and bytes 4-7 minimums 0-3 in their low
    six bits; the upper two bits of those bytes top up the nibbles of bytes 8-11, which hold scales
    (low nibble) and minimums (high nibble) 4-7.
    """
    super_scales = _float16(blocks[:, :4])
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 0x3F, (third & 0x0F) | (first >> 2 & 0x30)], axis=1)
    mins = np.concatenate([second & 0x3F, (third >> 4) | (second >> 2 & 0x30)], axis=1)
    return (
        (super_scales[:, :1] * scales.astype(np.float32))[:, :, None],
        (super_scales[:, 1:] * mins.astype(np.float32))[:, :, None],
    )


def _fill_q4_k(blocks: U8, values: F32) -> None:
    scales, mins = _scales_and_mins(blocks)
    by_sub_block = values.reshape(-1, 8, 32)
    by_sub_block[...] = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    by_sub_block *= scales
    by_sub_block -= mins


def _fill_q5_k(blocks: U8, values: F32) -> None:
    scales, mins = _scales_and_mins(blocks)
    quants = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth_bits = blocks[:, 16:48]  # bit s of byte j belongs to value j of sub-block s
    for s in range(8):
        quants[:, s] |= (fifth_bits >> np.uint8(s) & 1) << 4
    by_sub_block = values.reshape(-1, 8, 32)
    by_sub_block[...] = quants
    by_sub_block *= scales
    by_sub_block -= mins


def _fill_q6_k(blocks: U8, values: F32) -> None:
    # Each half of a block: 64 bytes of low nibbles, 32 bytes with four pairs of high bits.
    quants = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high_bits = blocks[:, 128:192].reshape(-1, 2, 32)
    for pair in range(4):
        quants[:, :, pair] |= (high_bits >> np.uint8(2 * pair) & 3) << 4
    scales = _float16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    by_sub_block = values.reshape(-1, 16, 16)
    by_sub_block[...] = quants.reshape(-1, 16, 16)
    by_sub_block -= 32
    by_sub_block *= scales[:, :, None]


# Each fills [n, block_size] values from [n, block_bytes] bytes.
DEQUANTIZERS: dict[str, Callable[[U8, F32], None]] = {
    "Q4_0": _fill_q4_0,
    "Q4_1": _fill_q4_1,
    "Q5_0": _fill_q5_0,
    "Q5_1": _fill_q5_1,
    "Q8_0": _fill_q8_0,
    "Q4_K": _fill_q4_k,
    "Q5_K": _fill_q5_k,
    "Q6_K": _fill_q6_k,
}
