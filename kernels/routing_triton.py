"""The choice of a token's experts as one Triton kernel: scores, groups, the best K, their weights.

A program holds all scores of a token and looks for the best one K times. What it compares are whole
numbers in the order of the floats, NaN above all as in torch's topk; of equal experts the first is
taken, so neither the choice nor its order depends on how the scores lie in registers.

Same contract as `choose_experts_torch`. The operation is `torch.ops.assembler.choose_experts`; it
has no backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from assembler.kernels.fused import as_rows
from assembler.kernels.routing import ChoiceRule
from assembler.kernels.traced import operation

_TAKEN = tl.constexpr(-(2**31))  # below the order of every float
_NAN = tl.constexpr(2**31 - 1)  # above it
_PROPAGATE = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _order(x):
    """int32 in the order of float32: equal for both zeros, NaN greatest."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x != x, _NAN, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))


@triton.jit
def _number(order):
    """The float32 of that order."""
    bits = tl.where(order < 0, order ^ 0x7FFFFFFF, order)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _group_orders(orders, TOP_TWO: tl.constexpr):
    """[G] int32 of [G, S]: the order of each group's best, or of its best two's sum."""
    best = tl.max(orders, 1)
    if TOP_TWO:
        first = tl.argmax(orders, 1, tie_break_left=True)
        others = tl.arange(0, orders.shape[1])[None, :] != first[:, None]
        second = tl.max(tl.where(others, orders, _TAKEN), 1)
        best = _order(_number(best) + _number(second))
    return best


@triton.jit
def _within_groups(orders, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, TOP_TWO: tl.constexpr):
    """The orders [G, S], `_TAKEN` outside of the best TOP_GROUPS of GROUPS groups."""
    groups = tl.arange(0, orders.shape[0])
    left = tl.where(groups < GROUPS, _group_orders(orders, TOP_TWO), _TAKEN)
    chosen = groups < 0
    for _ in range(TOP_GROUPS):
        best = tl.argmax(left, 0, tie_break_left=True)
        chosen = chosen | (groups == best)
        left = tl.where(groups == best, _TAKEN, left)
    return tl.where(chosen[:, None], orders, _TAKEN)


@triton.jit
def choose_experts_kernel(
    weights_ptr,  # [N, TOP_K] float32
    chosen_ptr,  # [N, TOP_K] int64
    logits_ptr,  # [N, GROUPS * SIZE]
    bias_ptr,  # [GROUPS * SIZE]
    stride,
    min_sum,
    scale,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,  # experts of a group
    TOP_GROUPS: tl.constexpr,
    TOP_TWO: tl.constexpr,
    TOP_K: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_G: tl.constexpr,  # powers of two, no less than what they hold
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: a token."""
    row = tl.program_id(0).to(tl.int64)
    groups, places = tl.arange(0, BLOCK_G)[:, None], tl.arange(0, BLOCK_S)[None, :]
    experts = groups * SIZE + places
    real = (groups < GROUPS) & (places < SIZE)
    logits = tl.load(logits_ptr + row * stride + experts, mask=real, other=float("-inf"))
    logits = logits.to(tl.float32)
    if SOFTMAX:
        greatest = tl.max(tl.max(logits, 1), 0)
        scores = tl.exp(logits - greatest)
        scores = scores / tl.sum(tl.sum(scores, 1), 0)
    else:
        scores = tl.sigmoid(logits)
    preferred = logits
    if HAS_BIAS or TOP_GROUPS < GROUPS:
        preferred = scores
    if HAS_BIAS:
        preferred += tl.load(bias_ptr + experts, mask=real, other=0.0).to(tl.float32)
    orders = tl.where(real, _order(preferred), _TAKEN)
    if TOP_GROUPS < GROUPS:
        orders = _within_groups(orders, GROUPS, TOP_GROUPS, TOP_TWO)
    orders = tl.reshape(orders, (BLOCK_G * BLOCK_S,))
    scores = tl.reshape(scores, (BLOCK_G * BLOCK_S,))
    lanes, slots = tl.arange(0, BLOCK_G * BLOCK_S), tl.arange(0, BLOCK_K)
    weights, chosen = tl.zeros([BLOCK_K], tl.float32), tl.zeros([BLOCK_K], tl.int32)
    total = 0.0
    for slot in range(TOP_K):
        best = tl.argmax(orders, 0, tie_break_left=True)
        score = tl.sum(tl.where(lanes == best, scores, 0.0), 0)
        orders = tl.where(lanes == best, _TAKEN, orders)
        weights = tl.where(slots == slot, score, weights)
        chosen = tl.where(slots == slot, best // BLOCK_S * SIZE + best % BLOCK_S, chosen)
        total += score
    if NORMALISE:
        weights = weights / tl.maximum(total, min_sum, _PROPAGATE)
    target = row * TOP_K + slots
    tl.store(weights_ptr + target, weights * scale, mask=slots < TOP_K)
    tl.store(chosen_ptr + target, chosen.to(tl.int64), mask=slots < TOP_K)


@operation("assembler::choose_experts")
def choose_experts_triton(
    logits: torch.Tensor,
    selection_bias: torch.Tensor | None,
    top_k: int,
    softmax: bool,
    normalise: bool,
    min_sum: float,
    scale: float,
    groups: int,
    top_groups: int,
    group_score: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`choose_experts` with the fields of `ChoiceRule` spread out; of equals, the first expert.

    Args:
        logits: [N, E], rows at any stride; E at most `MAX_EXPERTS`.
        selection_bias: [E], of any dtype.
    """
    num_tokens, num_experts = logits.shape
    weights = logits.new_empty(num_tokens, top_k, dtype=torch.float32)
    chosen = logits.new_empty(num_tokens, top_k, dtype=torch.int64)
    if num_tokens == 0:
        return weights, chosen
    logits, size = as_rows(logits), num_experts // groups
    block_g, block_s = triton.next_power_of_2(groups), triton.next_power_of_2(size)
    choose_experts_kernel[(num_tokens,)](
        weights,
        chosen,
        logits,
        logits if selection_bias is None else selection_bias.contiguous(),
        logits.stride(0),
        min_sum,
        scale,
        GROUPS=groups,
        SIZE=size,
        TOP_GROUPS=top_groups,
        TOP_TWO=group_score == "top2",
        TOP_K=top_k,
        SOFTMAX=softmax,
        HAS_BIAS=selection_bias is not None,
        NORMALISE=normalise,
        BLOCK_G=block_g,
        BLOCK_S=block_s,
        BLOCK_K=triton.next_power_of_2(top_k),
        num_warps=1 if block_g * block_s <= 512 else 4,
        enable_fp_fusion=True,  # Triton 3.9 warns of a coming change of default if it is not said
    )
    return weights, chosen


@choose_experts_triton.register_fake
def _(logits, selection_bias, top_k, *_):
    size = logits.shape[0], top_k
    return logits.new_empty(size, dtype=torch.float32), logits.new_empty(size, dtype=torch.int64)


def run_choice(
    logits: torch.Tensor, selection_bias: torch.Tensor | None, rule: ChoiceRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """`choose_experts` in Triton, as an operation where it is traced."""
    return choose_experts_triton(
        logits,
        selection_bias,
        rule.top_k,
        rule.softmax,
        rule.normalise,
        rule.min_sum,
        rule.scale,
        rule.groups,
        rule.top_groups,
        rule.group_score,
    )
