"""Rows between a router and its experts as Triton kernels: sorted before, summed behind.

Sorting takes one launch for up to `ALONE` choices and two for more: programs count their chunk of
the choices, then each ranks its own behind everyone's counts. Only whole numbers are counted, ranks
are stable and sums have one order, so the bits depend on no scheduling.

Same contracts as in `routing_rows`. The operations are `torch.ops.assembler.align_experts` and
`.sum_experts`; they have no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.routing_rows import count_tiles
from assembler.kernels.traced import operation

ALONE = 512
"""Choices that one program sorts by itself."""
CHUNK, MAX_CHUNKS = 256, 256
"""Choices of each program where there are more, and how many programs; then they have more."""
_NUMBERS = 4096  # that a program looks at in one go: something for each expert
_BLOCK = 1024


@triton.jit
def count_experts_kernel(
    counts_ptr,  # [chunks, BINS] int32
    chosen_ptr,  # [rows] int64
    rows,
    BINS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: how often each expert is chosen in a chunk."""
    slots = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    live = slots < rows
    expert = tl.load(chosen_ptr + slots, mask=live, other=0).to(tl.int32)
    counts = tl.histogram(expert, BINS, mask=live)
    tl.store(counts_ptr + tl.program_id(0) * BINS + tl.arange(0, BINS), counts)


@triton.jit
def align_experts_kernel(
    order_ptr,  # [rows] int32; these four as in `Alignment`
    tile_expert_ptr,  # [num_tiles] int32
    tile_row_ptr,  # [num_tiles] int32
    expert_end_ptr,  # [EXPERTS + 1] int32
    chosen_ptr,  # [rows] int64
    counts_ptr,  # [chunks, BINS] int32, not read if there is one chunk
    rows,
    num_tiles,
    EXPERTS: tl.constexpr,
    BINS: tl.constexpr,  # a power of two, no fewer than the experts
    CHUNK: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    STEP: tl.constexpr,  # choices, chunks or tiles that are looked at in one go
    TILE_ROWS: tl.constexpr,
):
    """One program: the rows of a chunk of choices, and some of the tiles."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    bins, steps = tl.arange(0, BINS), tl.arange(0, STEP)
    total, before = tl.zeros([BINS], tl.int32), tl.zeros([BINS], tl.int32)  # before: this chunk
    if ONE_CHUNK:
        lanes = tl.arange(0, CHUNK)
        experts = tl.load(chosen_ptr + lanes, mask=lanes < rows, other=0).to(tl.int32)
        total += tl.histogram(experts, BINS, mask=lanes < rows)
    else:
        for start in range(0, chunks, STEP):
            some = (start + steps)[:, None]
            counts = tl.load(counts_ptr + some * BINS + bins[None, :], mask=some < chunks, other=0)
            total += tl.sum(counts, 0)
            before += tl.sum(tl.where(some < chunk, counts, 0), 0)
    ends = tl.cumsum(total, 0)
    starts = ends - total
    if chunk == 0:
        tl.store(expert_end_ptr + bins, ends, mask=bins < EXPERTS)
        tl.store(expert_end_ptr + EXPERTS, 0)

    free = starts + before  # the next row of each expert
    for start in range(0, CHUNK, STEP):
        slot = chunk * CHUNK + start + steps
        expert = tl.load(chosen_ptr + slot, mask=slot < rows, other=BINS).to(tl.int32)
        is_it = expert[:, None] == bins[None, :]
        ones = is_it.to(tl.int32)
        row = tl.sum(tl.where(is_it, free[None, :] + tl.cumsum(ones, 0) - 1, 0), 1)
        tl.store(order_ptr + row, slot, mask=slot < rows)
        free += tl.sum(ones, 0)

    tiles = (total + TILE_ROWS - 1) // TILE_ROWS
    tile_ends = tl.cumsum(tiles, 0)
    shift = starts - (tile_ends - tiles) * TILE_ROWS  # from TILE_ROWS times a tile to its first row
    for start in range(chunk * STEP, num_tiles, chunks * STEP):
        tile = start + steps
        whose = tl.sum((tile_ends[None, :] <= tile[:, None]).to(tl.int32), 1)
        is_its = (whose[:, None] == bins[None, :]) & (bins[None, :] < EXPERTS)
        first = tl.sum(tl.where(is_its, tile[:, None] * TILE_ROWS + shift[None, :], 0), 1)
        tl.store(tile_expert_ptr + tile, tl.minimum(whose, EXPERTS), mask=tile < num_tiles)
        tl.store(tile_row_ptr + tile, first, mask=tile < num_tiles)


def launch_alignment(
    chosen: torch.Tensor, num_experts: int, block_m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fields of `Alignment` for chosen [N, K] (int64, below `num_experts`).

    Args:
        block_m: rows of a tile.
    """
    rows, chosen = chosen.numel(), chosen.contiguous()
    sizes = rows, *(2 * [count_tiles(rows, num_experts, block_m)]), num_experts + 1
    table = tuple(chosen.new_empty(size, dtype=torch.int32) for size in sizes)
    if rows == 0:
        table[3].zero_()
        return table
    bins, chunk = (max(16, triton.next_power_of_2(size)) for size in (num_experts, rows))
    if rows > ALONE:
        chunk = max(CHUNK, triton.next_power_of_2(triton.cdiv(rows, MAX_CHUNKS)))
    chunks = triton.cdiv(rows, chunk)
    counts = table[0]  # of as many choices as one program sorts alone, nobody reads any
    if chunks > 1:
        counts = chosen.new_empty(chunks, bins, dtype=torch.int32)
        count_experts_kernel[(chunks,)](
            counts, chosen, rows, BINS=bins, CHUNK=chunk, num_warps=4, enable_fp_fusion=True
        )
    align_experts_kernel[(chunks,)](
        *table,
        chosen,
        counts,
        rows,
        len(table[1]),
        EXPERTS=num_experts,
        BINS=bins,
        CHUNK=chunk,
        ONE_CHUNK=chunks == 1,
        STEP=min(chunk, max(2, _NUMBERS // bins)),
        TILE_ROWS=block_m,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return table


align_experts = operation("assembler::align_experts")(launch_alignment)
"""`launch_alignment`, as an operation where it is traced."""


@align_experts.register_fake
def _(chosen, num_experts, block_m):
    rows = chosen.numel()
    sizes = rows, *(2 * [count_tiles(rows, num_experts, block_m)]), num_experts + 1
    return tuple(chosen.new_empty(size, dtype=torch.int32) for size in sizes)


@triton.jit
def sum_experts_kernel(
    out_ptr,  # [N, WIDTH]
    rows_ptr,  # [N, TOP_K, WIDTH]
    weights_ptr,  # [N, TOP_K] float32
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    WEIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK numbers of a token."""
    first = tl.program_id(0).to(tl.int64) * TOP_K
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(TOP_K):
        row = tl.load(rows_ptr + (first + slot) * WIDTH + columns, mask=inside, other=0.0)
        row = row.to(tl.float32)
        if WEIGH:
            row *= tl.load(weights_ptr + first + slot)
        total += row
    target = out_ptr + tl.program_id(0).to(tl.int64) * WIDTH + columns
    tl.store(target, total.to(out_ptr.dtype.element_ty), mask=inside)


def launch_sum(rows: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The weighted sum of each token's rows [N, K, H] -> [N, H], in their dtype, rounded once.

    Args:
        weights: [N, K] float32; None: all are 1.
    """
    num_tokens, top_k, width = rows.shape
    out = rows.new_empty(num_tokens, width)
    if out.numel() == 0:
        return out
    block = min(_BLOCK, triton.next_power_of_2(width))
    rows = rows.contiguous()
    sum_experts_kernel[(num_tokens, triton.cdiv(width, block))](
        out,
        rows,
        rows if weights is None else weights.contiguous(),
        WIDTH=width,
        TOP_K=top_k,
        WEIGH=weights is not None,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


sum_experts = operation("assembler::sum_experts")(launch_sum)
"""`launch_sum`, as an operation where it is traced."""


@sum_experts.register_fake
def _(rows, weights):
    return rows.new_empty(rows.shape[0], rows.shape[2])
