"""How the Triton paged-attention kernel cuts its work: choices that change speed, not results.

Plain arithmetic without Triton or a device, so that it can be tested, and tuned, on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from assembler.kernels.gpu import GPU

MIN_KEYS_PER_SPLIT = 256


class Tiles(NamedTuple):
    """Constants of the kernels: how much one program takes.

    A width is cut into MAIN, padded to BLOCK, and what is left of it, padded to REST (0: nothing).
    """

    HEADS: int  # query heads of a key/value head a program
    BLOCK_Q: int  # query tokens a program
    BLOCK_M: int  # rows of the query tile, power of two >= BLOCK_Q * HEADS
    TILE: int  # keys an iteration
    MAIN_D: int
    BLOCK_D: int
    REST_D: int
    MAIN_DV: int
    BLOCK_DV: int
    REST_DV: int
    LEAST: int  # tiles of a split


@dataclass(frozen=True)
class Tiling:
    """The kernel's constants and the options of its launch."""

    tiles: Tiles
    num_warps: int
    num_stages: int
    side_by_side: int  # programs that a processor has the shared memory for

    def slots(self, gpu: GPU) -> int:
        """Programs that the whole device runs side by side."""
        return self.side_by_side * gpu.processors


@dataclass(frozen=True)
class Heads:
    """What the tiles depend on of an attention: sizes of its heads, bytes of its numbers."""

    group: int  # query heads a key/value head
    head_dim: int
    head_dim_v: int
    latent: bool = False  # values are the first head_dim_v numbers of the keys
    itemsize: int = 2  # of queries
    cache_itemsize: int = 2  # of keys and values


@cache
def choose_tiling(heads: Heads, gpu: GPU, decode: bool) -> Tiling:
    """Tiles for steps of one query token a sequence (`decode`) or of several.

    Decode takes one query token a program and reads ahead as far as shared memory allows; prefill
    takes as many tokens as fill the rows. Exact float32 has no tensor cores: its products live in
    registers, so it takes small tiles and many warps. Where heads are many or wide, a program takes
    a part of a group: the accumulator (rows times values) has to stay in the registers.
    """
    main_d, block_d, rest_d = split_width(heads.head_dim)
    main_dv, block_dv, rest_dv = split_width(heads.head_dim_v)
    if heads.latent:
        main_d, block_d = heads.head_dim_v, _power_of_2(heads.head_dim_v)
        main_dv, block_dv, rest_dv = main_d, block_d, 0
        rest_d = _power_of_2(heads.head_dim - main_d) if heads.head_dim > main_d else 0
    width, width_v = block_d + rest_d, block_dv + rest_dv
    widest = max(width, width_v)
    rows = _rows(heads, gpu, decode, widest)
    parts = -(-heads.group // rows)
    per_program = -(-heads.group // parts)  # the group in equal parts of at most `rows`
    tile = _keys_a_tile(heads, gpu, rows, widest)
    warps = _warps(heads, gpu, rows, widest)
    per_stage = tile * (width + (0 if heads.latent else width_v)) * heads.cache_itemsize
    side_by_side = 2 if rows <= 16 else 1
    query = rows * width * heads.itemsize
    stages = _stages(gpu, per_stage, query, decode, rows, side_by_side)
    tiles = Tiles(
        HEADS=per_program,
        BLOCK_Q=1 if decode else max(1, rows // per_program),
        BLOCK_M=rows,
        TILE=tile,
        MAIN_D=main_d,
        BLOCK_D=block_d,
        REST_D=rest_d,
        MAIN_DV=main_dv,
        BLOCK_DV=block_dv,
        REST_DV=rest_dv,
        LEAST=MIN_KEYS_PER_SPLIT // tile,
    )
    return Tiling(tiles, warps, stages, side_by_side)


def split_width(width: int) -> tuple[int, int, int]:
    """(main, its block, block of the rest): powers of two that hold `width` with least padding."""
    whole = _power_of_2(width)
    main = whole // 2
    rest = _power_of_2(width - main)
    if whole == width or main < 16 or main + rest >= whole:
        return width, whole, 0
    return main, main, rest


def _rows(heads: Heads, gpu: GPU, decode: bool, width: int) -> int:
    """Rows of a query tile: those of a group in decode, more in prefill."""
    exact = heads.itemsize == 4
    wide_fits = heads.cache_itemsize == heads.itemsize  # 8 bits turned into 16 take registers
    if exact:
        most = 32 if width <= 256 else 16
    elif gpu.wide_matrix_rows and width <= 256:
        most = 128
    elif gpu.wide_matrix_rows and wide_fits and (gpu.accumulates_aside or heads.group >= 64):
        most = 64  # rows of one query: what they have in common takes no registers
    elif width <= 128:
        most = 128
    elif width <= 256:
        most = 64
    else:
        most = 16 if gpu.amd else 32
    wanted = _power_of_2(heads.group)
    return min(wanted if decode else max(wanted, 128), most)


def _keys_a_tile(heads: Heads, gpu: GPU, rows: int, width: int) -> int:
    """Keys an iteration: what the accumulator leaves registers for."""
    if heads.itemsize == 4:
        return 32 if width <= 128 and rows <= 16 else 16
    if rows < gpu.wide_matrix_rows or not gpu.wide_matrix_rows:
        return 64 if width <= 128 and rows < 128 else 32
    if width > 256:
        return 32 if gpu.accumulates_aside else 16
    return 64 if width < 256 else 32


def _warps(heads: Heads, gpu: GPU, rows: int, width: int) -> int:
    if heads.itemsize == 4 or (width > 256 and not gpu.amd):
        return 8
    # Four warps of wgmma share 64 rows; without it the operands are in registers too.
    most_of_four = 64 if gpu.wide_matrix_rows or gpu.amd else 32
    return 8 if rows > most_of_four or (rows >= 32 and width > 128) else 4


def _stages(
    gpu: GPU, per_stage: int, query: int, decode: bool, rows: int, side_by_side: int
) -> int:
    """How many tiles are on their way at a time, the one at work included."""
    if gpu.amd:
        return 1 if per_stage >= gpu.shared_memory else 2
    room = gpu.shared_memory // side_by_side - 8192 - query
    # Whole operands stay in shared memory until they are multiplied; small tiles are copied to
    # registers before the next one comes, which takes the place of one.
    buffers = room // per_stage + (rows < gpu.wide_matrix_rows or not gpu.wide_matrix_rows)
    # Blackwell's ptxas spills at four; three programs side by side then read ahead as far as two.
    most = 4 if decode and not gpu.accumulates_aside else 3
    return max(1, min(most, buffers))


def _power_of_2(n: int) -> int:
    """The next power of two; tl.dot wants 16 of everything."""
    return max(16, 1 << (n - 1).bit_length())
