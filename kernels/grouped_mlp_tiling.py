"""How the rows of a mixture of experts are cut into tiles for the Triton kernels: plain numbers."""

from __future__ import annotations

from typing import NamedTuple

from assembler.kernels.gpu import GPU

TILES_SHARING_COLUMNS = 8
"""Tiles of rows whose programs follow each other for the same columns of weights."""


class Tiling(NamedTuple):
    """Constexprs of a launch: tile sizes, all powers of two."""

    BLOCK_M: int  # rows, i.e. tokens of one expert
    BLOCK_N: int  # rows of a weight matrix; half of them gate's, half up's, on the way up
    BLOCK_K: int  # input features a step
    num_warps: int
    num_stages: int


def choose_tiling(rows: int, num_experts: int, itemsize: int, gpu: GPU) -> Tiling:
    """Tiles as tall as an expert's usual share of the rows, within what `gpu` holds.

    From 128 rows an expert on, products are bound by the matrix units and want large squares. Few
    rows are bound by the weights, which stream past once: many programs with long rows of them on
    their way. Stages are as many as leave room for two programs on a processor, so that one
    multiplies while the other begins or writes; where the registers of a square leave no room for a
    second one, it has all of the memory.
    """
    share = 1 << max(0, -(-rows // num_experts) - 1).bit_length()
    if itemsize == 4:  # multiplied exactly, number by number where matrix units would round
        return Tiling(min(max(share, 16), 64), 64, 32, num_warps=4, num_stages=3)
    block_m = min(max(share, 16), 128)
    if block_m < 64:
        block_n, block_k, num_warps = 64, 128, 4
    else:
        block_n, block_k, num_warps = 128, 64, 8 if block_m == 128 else 4
    if gpu.amd:  # operands wait in registers: one stage takes shared memory
        return Tiling(block_m, block_n, block_k, num_warps, num_stages=2)
    # The wide matrix instructions read a stage while the next one is loaded beside it.
    wide = 0 < gpu.wide_matrix_rows <= block_m
    programs = 1 if block_m == 128 and not wide else 2
    room = gpu.shared_memory // programs // ((block_m + block_n) * block_k * itemsize)
    stages = min(max(room if wide else room + 1, 2), 4)
    return Tiling(block_m, block_n, block_k, num_warps, stages)
