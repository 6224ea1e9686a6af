"""A token drawn for each row of logits, without sorting the vocabulary, as one Triton kernel.

A program takes a row: it finds the likeliest token, bisects for the thresholds of top-k and top-p
(`sampling_search`) and draws. There are two ways to draw:

- `sample_by_number` inverts the cumulative distribution with one uniform number a row, as the
  engine's sampler does: the same number gives the same token.
- `sample_by_noise` adds Gumbel noise to the logits and takes the largest. The noise is a function
  of (seed, stream, position, token) by Philox4x32-10, so nothing comes from the host and a captured
  CUDA graph draws anew at each replay; it needs no sum over the vocabulary.

The operations are `torch.ops.assembler.{sample_by_number, sample_by_noise}`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.sampling_search import (
    likeliest,
    load_block,
    scaled_weights,
    top_k_floor,
    top_p_floor,
)
from assembler.kernels.sampling_torch import NO_TOKEN, RowSettings
from assembler.kernels.traced import operation

_BLOCK_BY_NUMBER, _BLOCK_BY_NOISE = 8192, 4096  # the most that registers hold without spills
_NO_TOKEN = tl.constexpr(NO_TOKEN)


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
def _gumbel_noise(seed, stream, position, start, BLOCK: tl.constexpr):
    """-log(-log(u)) for BLOCK tokens from `start` on: four of them from each Philox counter."""
    counter = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(
        seed, zero + position.to(tl.uint32), zero + stream.to(tl.uint32), counter, zero + 1
    )
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    uniform = ((words >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    return -tl.log(-tl.log(uniform))


@triton.jit
def _draw_by_noise(
    logits_ptr,
    seed,
    stream,
    position,
    best,
    temperature,
    log_min_p,
    floor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The kept token whose scaled logit plus noise is the largest."""
    highest = float("-inf")
    token = 0
    for start in range(0, VOCAB, BLOCK):
        columns, x, mask = load_block(logits_ptr, start, VOCAB, BLOCK)
        scaled, weights = scaled_weights(x, mask, best, temperature, log_min_p, floor)
        noise = _gumbel_noise(seed, stream, position, start, BLOCK)
        score = tl.where(weights > 0, scaled + noise, float("-inf"))
        largest = tl.max(score, 0)
        first = tl.min(tl.where(score == largest, columns, VOCAB), 0)
        token = tl.where(largest > highest, first, token)
        highest = tl.maximum(highest, largest)
    return token


@triton.jit
def sample_kernel(
    out_ptr,  # [R] int64
    logits_ptr,  # [R, V], rows at a stride
    temperature_ptr,  # [R], as the fields of RowSettings
    top_k_ptr,
    top_p_ptr,
    log_min_p_ptr,
    number_ptr,  # [R] float32; None: by noise
    seed_ptr,  # [R] int64, for noise
    stream_ptr,  # [R] int64
    position_ptr,  # [R] int64
    row_stride,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    best, token, num_nan = likeliest(logits_ptr, VOCAB, BLOCK)
    temperature = tl.load(temperature_ptr + row)
    if (num_nan > 0) | (tl.abs(best) == float("inf")):
        token = _NO_TOKEN
    elif temperature > 0:
        log_min_p, top_p = tl.load(log_min_p_ptr + row), tl.load(top_p_ptr + row)
        floor = top_k_floor(logits_ptr, best, tl.load(top_k_ptr + row), VOCAB, BLOCK)
        if number_ptr is not None:
            floor, mass = top_p_floor(
                logits_ptr, best, temperature, log_min_p, top_p, floor, VOCAB, BLOCK
            )
            number = tl.load(number_ptr + row)
            token = _draw_by_number(
                logits_ptr, number, token, mass, best, temperature, log_min_p, floor, VOCAB, BLOCK
            )
        else:
            if top_p < 1.0:
                floor, _ = top_p_floor(
                    logits_ptr, best, temperature, log_min_p, top_p, floor, VOCAB, BLOCK
                )
            seed, stream = tl.load(seed_ptr + row), tl.load(stream_ptr + row)
            position = tl.load(position_ptr + row)
            token = _draw_by_noise(
                logits_ptr, seed, stream, position, best, temperature, log_min_p, floor, VOCAB,
                BLOCK,
            )  # fmt: skip
    tl.store(out_ptr + row, token.to(tl.int64))


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
    settings = RowSettings(temperature, top_k, top_p, log_min_p)
    return _launch(logits, settings, numbers, None, None, None)


@operation("assembler::sample_by_noise")
def sample_by_noise(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    log_min_p: torch.Tensor,
    seeds: torch.Tensor,
    streams: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """A token id [R] int64 for each row of logits [R, V] (any float dtype), `NO_TOKEN` for none.

    Args:
        temperature, top_k, top_p, log_min_p: the fields of `RowSettings`, on the logits' device.
        seeds: [R] int64, of the requests.
        streams: [R] int64 below 2^32: which of a request's samples a row is.
        positions: [R] int64 below 2^32: how many tokens the sample has.
    """
    settings = RowSettings(temperature, top_k, top_p, log_min_p)
    return _launch(logits, settings, None, seeds, streams, positions)


@sample_by_number.register_fake
@sample_by_noise.register_fake
def _(logits, *_):
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _launch(
    logits: torch.Tensor,
    settings: RowSettings,
    numbers: torch.Tensor | None,
    seeds: torch.Tensor | None,
    streams: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> torch.Tensor:
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return out
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    most = _BLOCK_BY_NOISE if numbers is None else _BLOCK_BY_NUMBER
    block = max(16, min(most, triton.next_power_of_2(vocab_size)))
    sample_kernel[(num_rows,)](
        out,
        logits,
        *settings,
        numbers,
        seeds,
        streams,
        positions,
        logits.stride(0),
        VOCAB=vocab_size,
        BLOCK=block,
        num_warps=16,
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
    return out
