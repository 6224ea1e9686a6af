"""16-bit paged attention of all widths, cut as each kind of GPU cuts it: the tiles of real models.

Tall prefill tiles, wide decode tiles and widths in two parts are chosen for 16-bit heads only. The
steps are small, but fill tiles and leave some part full; rows of two queries of a group of three
share a tile. Unused memory is NaN, and so is the output before it is written.
"""

from __future__ import annotations

import pytest
import torch
from naive_attention import make_step

from assembler.kernels.attention_options import AttentionOptions
from assembler.kernels.gpu import GPUS
from assembler.kernels.paged_attention_tiling import Heads, Tiles, choose_tiling
from assembler.kernels.paged_attention_triton import paged_attention_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory", "device_rounding")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
WIDTHS = [(dim, dim) for dim in (64, 72, 80, 96, 112, 128, 160, 192, 256)] + [(192, 128)]
GROUP = 3
# A decode over three tiles of 64 keys; a chunk of two blocks of 128 rows behind whole tiles.
MIXED = ([1, 45], [140, 145])
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}  # rounded weights, and outputs near 1


def tilings(head_dim: int, head_dim_v: int) -> dict[tuple[Tiles, Tiles], str]:
    """The different pairs of tiles for decode and prefill, each with the first GPU that has it."""
    heads = Heads(GROUP, head_dim, head_dim_v)
    first: dict[tuple[Tiles, Tiles], str] = {}
    for architecture in ARCHITECTURES:
        gpu = GPUS[architecture]
        pair = tuple(choose_tiling(heads, gpu, decode).tiles for decode in (True, False))
        first.setdefault(pair, architecture)
    return first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "head_dim_v"), WIDTHS)
def test_widths(head_dim, head_dim_v, dtype):
    about = {"heads": 2 * GROUP, "kv_heads": 2, "head_dim": head_dim, "head_dim_v": head_dim_v}
    step = make_step(*MIXED, page_size=16, dtype=dtype, **about)
    options = AttentionOptions(scale=head_dim**-0.5)
    expected = step.expected(options)
    for architecture in tilings(head_dim, head_dim_v).values():
        got = paged_attention_triton(
            step.q, step.k_cache, step.v_cache, step.batch, options, gpu=GPUS[architecture]
        )
        torch.testing.assert_close(
            got.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype],
            msg=lambda said, where=architecture: f"{where}: {said}",
        )  # fmt: skip


def test_the_tiles_of_real_models_are_among_them():
    """What these tests are for: a change of the tiling must not take it out of them unnoticed."""
    shapes = {
        (tiles.BLOCK_M, tiles.TILE, tiles.BLOCK_D, tiles.REST_D)
        for widths in WIDTHS
        for pair in tilings(*widths)
        for tiles in pair
    }
    assert {(128, 64, 128, 0), (128, 32, 128, 0), (16, 64, 128, 0)} <= shapes
    split = {(rows, block, rest) for rows, _, block, rest in shapes if rest}
    assert {(128, 64, 16), (128, 64, 32), (128, 128, 32), (128, 128, 64)} <= split
    assert {(16, 64, 16), (16, 128, 64)} <= split
