"""How paged attention is cut: tiles that hold the work and fit the GPU."""

from __future__ import annotations

from itertools import product

import pytest

from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_tiling import (
    MIN_KEYS_PER_SPLIT,
    Heads,
    choose_tiling,
    split_width,
)


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (8, (8, 16, 0)),
        (16, (16, 16, 0)),
        (24, (24, 32, 0)),  # 16 + 16 would be as wide
        (64, (64, 64, 0)),
        (72, (64, 64, 16)),
        (80, (64, 64, 16)),
        (96, (64, 64, 32)),
        (112, (112, 128, 0)),  # 64 + 64 would be as wide
        (160, (128, 128, 32)),
        (192, (128, 128, 64)),
        (256, (256, 256, 0)),
    ],
)
def test_widths_are_cut_where_that_saves_padding(width, parts):
    assert split_width(width) == parts


@pytest.mark.parametrize("architecture", GPUS)
@pytest.mark.parametrize("decode", [True, False])
def test_tiles_hold_the_work_and_fit(architecture, decode):
    gpu = GPUS[architecture]
    for group, dim, itemsize in product((1, 3, 8, 71), (16, 40, 64, 80, 128, 192, 256), (2, 4)):
        tiling = choose_tiling(
            Heads(group, dim, dim, itemsize=itemsize, cache_itemsize=itemsize), gpu, decode
        )
        tiles = tiling.tiles
        programs = -(-group // tiles.HEADS)
        assert (programs - 1) * tiles.HEADS < group <= programs * tiles.HEADS
        assert 1 <= tiles.BLOCK_Q * tiles.HEADS <= tiles.BLOCK_M
        assert not decode or tiles.BLOCK_Q == 1
        assert tiles.MAIN_D <= tiles.BLOCK_D and dim - tiles.MAIN_D <= tiles.REST_D
        for size in (tiles.BLOCK_M, tiles.BLOCK_D, tiles.BLOCK_DV, tiles.TILE):
            assert size >= 16 and size & (size - 1) == 0
        assert tiles.LEAST * tiles.TILE == MIN_KEYS_PER_SPLIT
        in_flight = tiling.num_stages - 1 or 1
        tile = tiles.TILE * (tiles.BLOCK_D + tiles.REST_D + tiles.BLOCK_DV + tiles.REST_DV)
        assert in_flight * tile * itemsize <= gpu.shared_memory


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
@pytest.mark.parametrize("dim", [64, 80, 128, 192, 256])
def test_prefill_tiles_are_tall_enough_for_whole_operands(architecture, dim):
    tiles = choose_tiling(Heads(4, dim, dim), GPUS[architecture], decode=False).tiles
    assert tiles.BLOCK_M == 128 and tiles.BLOCK_Q == 32


@pytest.mark.parametrize(
    ("architecture", "group", "heads"),
    [("sm_80", 128, 32), ("sm_90", 128, 64), ("sm_90", 16, 16), ("gfx942", 128, 16)],
)
def test_many_heads_of_wide_values_share_a_group(architecture, group, heads):
    shape = Heads(group, 576, 512, latent=True)
    for decode in (True, False):
        tiles = choose_tiling(shape, GPUS[architecture], decode).tiles
        assert tiles.HEADS == heads <= tiles.BLOCK_M
        assert (tiles.MAIN_D, tiles.BLOCK_D, tiles.REST_D) == (512, 512, 64)
        assert (tiles.BLOCK_DV, tiles.REST_DV) == (512, 0)


def test_decode_reads_ahead_and_8_bits_read_further():
    full = choose_tiling(Heads(8, 128, 128), GPUS["sm_80"], decode=True)
    eight = choose_tiling(Heads(8, 128, 128, cache_itemsize=1), GPUS["sm_80"], decode=True)
    assert 3 <= full.num_stages < eight.num_stages
