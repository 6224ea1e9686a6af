"""A token drawn for each row of logits, without sorting the vocabulary, by Triton kernels.

`sample_by_number` inverts the cumulative distribution with one uniform number a row, as the
engine's sampler does: the same number gives the same token. `sampling_survey` reads the logits and
finishes greedy rows and rows without filters; `search_kernel` bisects for the thresholds of top-k
and top-p (`sampling_search`) among the few tokens that were found to be likely, and in the whole
row where those are not enough.

The operation is `torch.ops.assembler.sample_by_number`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.sampling_search import (
    LOWEST_KEY,
    load_block,
    mass_above,
    scaled_weights,
    top_k_floor,
    top_p_floor,
)
from assembler.kernels.sampling_survey import FINISHED, narrow_kernel, survey_kernel
from assembler.kernels.sampling_torch import RowSettings
from assembler.kernels.traced import operation

_CHUNK = 8192  # logits that a program of 16 warps holds in registers without spills
_BLOCK = 2048  # tokens that are collected at a time, through shared memory
_GROUP = 64
_HEAD = 512  # groups that reach what is looked at of a row without top-k
_ROOM = 2048  # tokens that are looked at


@triton.jit
def _draw_by_number(
    logits_ptr,
    number,
    token,
    mass,
    best,
    temperature,
    log_min_p,
    floor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where the summed weights pass `number` * `mass`; `token` if rounding finds none."""
    target = number * mass
    summed = 0.0
    before = 0.0
    begin = -1
    for start in range(0, VOCAB, BLOCK):
        _, x, mask = load_block(logits_ptr, start, VOCAB, BLOCK)
        _, weights = scaled_weights(x, mask, best, temperature, log_min_p, floor)
        after = summed + tl.sum(weights, 0)
        here = (begin < 0) & (after > target)
        begin = tl.where(here, start, begin)
        before = tl.where(here, summed, before)
        summed = after
    if begin >= 0:
        columns, x, mask = load_block(logits_ptr, begin, VOCAB, BLOCK)
        _, weights = scaled_weights(x, mask, best, temperature, log_min_p, floor)
        passed = (before + tl.cumsum(weights, 0) > target) & (weights > 0)
        drawn = tl.min(tl.where(passed, columns, VOCAB), 0)
        token = tl.where(drawn < VOCAB, drawn, token)
    return token


@triton.jit
def _search(
    logits_ptr,
    number,
    best,
    temperature,
    top_k,
    top_p,
    log_min_p,
    total,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The column of a row that is drawn under top-k, top-p and min-p; VOCAB if there is none."""
    floor = top_k_floor(logits_ptr, best, top_k, VOCAB, BLOCK)
    floor, mass = top_p_floor(
        logits_ptr, best, temperature, log_min_p, top_p, floor, total, VOCAB, BLOCK
    )
    nothing = tl.full([], VOCAB, tl.int32)
    return _draw_by_number(
        logits_ptr, number, nothing, mass, best, temperature, log_min_p, floor, VOCAB, BLOCK
    )


@triton.jit
def search_kernel(
    out_ptr,  # [R] int64; the likeliest token
    count_ptr,  # [R], and the four after it: what narrow_kernel left
    floor_ptr,
    total_ptr,
    kept_logits_ptr,
    kept_tokens_ptr,
    logits_ptr,  # [R, V], rows at a stride
    temperature_ptr,  # [R], as the fields of RowSettings
    top_k_ptr,
    top_p_ptr,
    log_min_p_ptr,
    number_ptr,  # [R] float32
    row_stride,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    ROOM: tl.constexpr,
):
    """Draw a token of a row that is not finished; grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(count_ptr + row)
    if count != FINISHED:
        logits_ptr += row * row_stride
        kept_logits_ptr += row * ROOM
        token = tl.load(out_ptr + row)
        best = tl.load(logits_ptr + token).to(tl.float32)
        temperature, number = tl.load(temperature_ptr + row), tl.load(number_ptr + row)
        log_min_p, top_p = tl.load(log_min_p_ptr + row), tl.load(top_p_ptr + row)
        top_k = tl.load(top_k_ptr + row).to(tl.int32)
        floor, total = tl.load(floor_ptr + row), tl.load(total_ptr + row)
        # Whether all tokens that can be drawn are among those that were kept.
        enough = (top_k > 0) | (floor == float("-inf"))
        if top_k <= 0:
            if log_min_p > float("-inf"):
                total = -1.0  # of what min-p leaves
                enough = enough | (tl.div_rn(floor - best, temperature) < log_min_p)
            else:
                mass, _ = mass_above(
                    kept_logits_ptr, best, temperature, log_min_p, LOWEST_KEY + 1, ROOM, ROOM
                )
                enough = enough | (mass >= top_p * total)
        else:
            total = -1.0
        if (count <= ROOM) & enough:
            column = _search(
                kept_logits_ptr, number, best, temperature, top_k, top_p, log_min_p, total,
                ROOM, ROOM,
            )  # fmt: skip
            if column < ROOM:
                token = tl.load(kept_tokens_ptr + row * ROOM + column).to(tl.int64)
        else:
            column = _search(
                logits_ptr, number, best, temperature, top_k, top_p, log_min_p, -1.0, VOCAB, CHUNK
            )
            if column < VOCAB:
                token = column.to(tl.int64)
        tl.store(out_ptr + row, token)


@operation("assembler::sample_by_number")
def sample_by_number(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    log_min_p: torch.Tensor,
    numbers: torch.Tensor,
) -> torch.Tensor:
    """A token id [R] int64 for each row of logits [R, V] (any float dtype), `NO_TOKEN` for none.

    Args:
        temperature, top_k, top_p, log_min_p: the fields of `RowSettings`, on the logits' device.
        numbers: [R] float32 in [0, 1].
    """
    num_rows, vocab_size = logits.shape
    device = logits.device
    out = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return out
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    chunk = max(_GROUP, min(_CHUNK, triton.next_power_of_2(vocab_size)))
    chunks = triton.cdiv(vocab_size, chunk)
    groups = chunks * (chunk // _GROUP)

    def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=device)

    best, weight, maxima = scratch(chunks), scratch(chunks), scratch(groups)
    token = scratch(chunks, dtype=torch.int32)
    # Triton 3.9 warns of a coming change of the default of enable_fp_fusion if it is not said.
    survey_kernel[(num_rows, chunks)](
        best, token, weight, maxima, logits, temperature, logits.stride(0),
        VOCAB=vocab_size, CHUNK=chunk, GROUP=_GROUP, num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    settings = RowSettings(temperature, top_k, top_p, log_min_p)
    count, floor, total = scratch(dtype=torch.int32), scratch(), scratch()
    kept = scratch(_ROOM), scratch(_ROOM, dtype=torch.int32)
    narrow_kernel[(num_rows,)](
        out, count, floor, total, *kept, best, token, weight, maxima, logits, *settings, numbers,
        logits.stride(0), VOCAB=vocab_size, CHUNK=chunk, BLOCK=min(_BLOCK, chunk), GROUP=_GROUP,
        CHUNKS=triton.next_power_of_2(chunks), GROUPS=triton.next_power_of_2(groups), HEAD=_HEAD,
        # Wider numbers take more registers: with 8 warps float32 spilled on sm_100.
        ROOM=_ROOM, num_warps=4 * logits.element_size(), enable_fp_fusion=True,
    )  # fmt: skip
    search_kernel[(num_rows,)](
        out, count, floor, total, *kept, logits, *settings, numbers, logits.stride(0),
        VOCAB=vocab_size, CHUNK=chunk, ROOM=_ROOM, num_warps=16, enable_fp_fusion=True,
    )  # fmt: skip
    return out


@sample_by_number.register_fake
def _(logits, *_):
    return logits.new_empty(logits.shape[0], dtype=torch.int64)
