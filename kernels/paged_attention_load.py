"""What a program of the Triton paged-attention kernel loads: its place in the step, and tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from assembler.kernels.fp8 import from_e4m3


@triton.jit
def find_sequence(cu_seqlens_q_ptr, block, num_sequences, BLOCK_Q: tl.constexpr):
    """The sequence that query block `block` belongs to, and the first of its queries there.

    Sequence s is given the blocks from cu_seqlens_q[s] // BLOCK_Q + s on: enough for its queries,
    at times one more than needed, and known without a table (as in vLLM).
    """
    low = 0
    high = num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        first = tl.load(cu_seqlens_q_ptr + middle) // BLOCK_Q + middle
        low = tl.where(first <= block, middle, low)
        high = tl.where(first <= block, high, middle)
    first = tl.load(cu_seqlens_q_ptr + low) // BLOCK_Q + low
    return low, (block - first) * BLOCK_Q


@triton.jit
def tile_pages(pages_ptr, tile, last, PAGE_SIZE: tl.constexpr, TILE: tl.constexpr):
    """The pages that the keys of a tile are in, up to key `last`: one, or one for each key.

    They are asked for a tile ahead. A load that waits for another in the same iteration of a loop
    takes Triton two stages of its pipeline, and tiles of the cache are then not read ahead.
    """
    if PAGE_SIZE % TILE == 0:
        first = tile * TILE
        pages = tl.load(pages_ptr + first // PAGE_SIZE, mask=first <= last, other=0)
    else:
        keys = tile * TILE + tl.arange(0, TILE)
        pages = tl.load(pages_ptr + keys // PAGE_SIZE, mask=keys <= last, other=0)
    return pages


@triton.jit
def tile_slots(pages, tile, PAGE_SIZE: tl.constexpr, TILE: tl.constexpr):
    """The slots [TILE] int64 of the keys of a tile that are in `pages`."""
    if PAGE_SIZE % TILE == 0:
        offsets = tile * TILE % PAGE_SIZE + tl.arange(0, TILE)
    else:
        offsets = (tile * TILE + tl.arange(0, TILE)) % PAGE_SIZE
    return pages.to(tl.int64) * PAGE_SIZE + offsets


@triton.jit
def load_lines(
    lines,  # pointers, [N, 1] or [1, N]
    dims,  # 0..BLOCK, along the other axis
    live,  # [N, 1] or [1, N]
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The first DIM numbers of each line, zeros up to BLOCK; zeros where not `live`, if MASKED.

    What lies behind the keys of a sequence may never have been written, and 0 * NaN is NaN; pages
    before those that a window shows may have been given away.
    """
    if MASKED and DIM < BLOCK:
        tile = tl.load(lines + dims, mask=live & (dims < DIM), other=0.0)
    elif MASKED:
        tile = tl.load(lines + dims, mask=live, other=0.0)
    elif DIM < BLOCK:
        tile = tl.load(lines + dims, mask=dims < DIM, other=0.0)
    else:
        tile = tl.load(lines + dims)
    return tile


@triton.jit
def as_operand(tile, OPERAND: tl.constexpr):
    """A tile in the dtype that is multiplied; e4m3 comes as numbers or as their bits, uint8."""
    if tile.dtype == tl.uint8:
        tile = from_e4m3(tile)
    return tile.to(OPERAND)
