"""Dequantised GGUF blocks, bit for bit against the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from assembler.weights.gguf_dequant import CHUNK_VALUES, DEQUANTIZERS, dequantize
from assembler.weights.gguf_types import GGML_TYPES

# Where a block keeps its float16 fields: (first byte, last byte).
FLOAT16_FIELDS = {
    "Q4_0": (0, 2),
    "Q4_1": (0, 4),
    "Q5_0": (0, 2),
    "Q5_1": (0, 4),
    "Q8_0": (0, 2),
    "Q4_K": (0, 4),
    "Q5_K": (0, 4),
    "Q6_K": (208, 210),
}


def random_blocks(dtype: str, count: int) -> np.ndarray:
    """Blocks of any bits, with scales that are finite."""
    rng = np.random.default_rng(len(dtype) + count)
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    blocks = rng.integers(0, 256, (count, block_bytes), np.uint8)
    start, end = FLOAT16_FIELDS[dtype]
    scales = rng.standard_normal((count, (end - start) // 2)).astype(np.float16)
    scales[: count // 4] *= np.float16(1e-6)  # subnormal in float16
    blocks[:, start:end] = scales.view(np.uint8)
    return blocks


@pytest.mark.parametrize("dtype", DEQUANTIZERS)
@pytest.mark.parametrize("count", [1, 7, 640])
def test_random_blocks_are_bit_exact(dtype: str, count: int):
    blocks = random_blocks(dtype, count)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[dtype]).reshape(-1)
    found = dequantize(blocks.reshape(-1), dtype)
    assert found.dtype == np.float32 and np.isfinite(found).all() and found.any()
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_chunk_borders_do_not_show():
    blocks = random_blocks("Q4_1", CHUNK_VALUES // 32 * 2 + 3)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1).reshape(-1)
    np.testing.assert_array_equal(dequantize(blocks.reshape(-1), "Q4_1"), expected)


@pytest.mark.parametrize("dtype", DEQUANTIZERS)
def test_infinite_scales_pass_through_without_warnings(dtype: str):
    blocks = random_blocks(dtype, 2)
    start, _ = FLOAT16_FIELDS[dtype]
    blocks[0, start : start + 2] = np.array([np.inf], np.float16).view(np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[dtype]).reshape(-1)
    np.testing.assert_array_equal(dequantize(blocks.reshape(-1), dtype), expected)
    assert not np.isfinite(expected).all()


def test_block_sizes_are_those_of_ggml():
    for number, known in GGML_TYPES.items():
        ggml_type = gguf.GGMLQuantizationType(number)
        assert known.name == ggml_type.name
        assert (known.block_size, known.block_bytes) == gguf.GGML_QUANT_SIZES[ggml_type]
