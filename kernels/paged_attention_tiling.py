"""How the Triton paged-attention kernel cuts its work: choices that change speed, not results.

Plain arithmetic without Triton or a device, so that it can be tested, and tuned, on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SPLITS = 32
MIN_KEYS_PER_SPLIT = 256
MAX_ACCUMULATOR = 1 << 14  # numbers


@dataclass(frozen=True)
class Tiling:
    """Constants of `paged_attention_kernel` (and launch options, in lower case)."""

    HEADS: int  # query heads of a key/value head a program
    BLOCK_Q: int  # query tokens a program
    BLOCK_M: int  # rows of the query tile, power of two >= BLOCK_Q * HEADS
    BLOCK_D: int  # power of two >= head dim (of a latent cache: without what is also value)
    BLOCK_DV: int  # power of two >= head dim of v
    TILE: int  # keys an iteration
    num_warps: int
    num_stages: int


def choose_tiling(
    group: int, head_dim: int, head_dim_v: int, itemsize: int, max_seqlen_q: int
) -> Tiling:
    """Tiles for `group` query heads a key/value head and elements of `itemsize` bytes.

    Decode takes one query token a program, prefill as many as fill the rows. Wide heads take fewer
    keys at a time. Exact float32 has no tensor cores: its products live in registers, so it takes
    smaller tiles and more warps. Of a group with more heads than leave the accumulator (rows times
    values) in the registers, a program takes a part. Compiled for sm_80, sm_86 and sm_90, heads of
    up to 256 keep within 99 KiB of shared memory and spill (next to) no registers.
    """
    decode = max_seqlen_q == 1
    exact = itemsize == 4
    block_d = max(16, _next_power_of_2(head_dim))  # tl.dot wants 16 of everything
    block_dv = max(16, _next_power_of_2(head_dim_v))
    wide = max(block_d, block_dv) > 128
    rows = 16 if decode else 32 if exact else 64
    block_m = min(max(rows, _next_power_of_2(group)), max(16, MAX_ACCUMULATOR // block_dv))
    heads = -(-group // -(-group // block_m))  # the group in equal parts of at most block_m
    tile = 32 if exact else 64
    return Tiling(
        HEADS=heads,
        BLOCK_Q=1 if decode else block_m // heads,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        BLOCK_DV=block_dv,
        TILE=tile // 2 if wide else tile,
        num_warps=8 if exact or (wide and block_m > 16) else 4,
        num_stages=2,
    )


def choose_splits(programs: int, max_keys: int, num_processors: int) -> int:
    """Into how many parts (a power of two) a decode step cuts each context.

    As many as give each of the device's `num_processors` two programs (there are `programs` of them
    without splitting), as long as each part has enough of the `max_keys` keys to be worth merging.
    """
    wanted = min(2 * num_processors // programs, max_keys // MIN_KEYS_PER_SPLIT, MAX_SPLITS)
    return 1 << (max(wanted, 1).bit_length() - 1)


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
