"""The kernels of a compiled step on a CPU: the program run piece by piece, each with a clock.

A piece is what the kernels run without waiting in between: one instruction, or a chain of those
that work row by row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from assembler.benching.step_kernels import KernelTime, StepKernels
from assembler.blocks.context import ForwardContext
from assembler.engine.cpu_step import CPUStep
from assembler.engine.lowering.program import Program, TorchCall
from assembler.kernels.cost import (
    AttentionShape,
    Cost,
    linear_cost,
    paged_attention_cost,
    rowwise_cost,
)
from assembler.kernels.cpu_program import NOTHING, Epilogue, Instruction, Opcode, Step


class TimedStep(CPUStep):
    """A compiled step that takes the time of each of its pieces."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.pieces: list[list[Instruction] | TorchCall] = []  # in the order in which they ran
        self.seconds: list[float] = []  # of each

    def _run_all(self, *args: Any) -> None:
        self.pieces, self.seconds = [], []  # of an earlier step
        super()._run_all(*args)

    def _run(self, step: Step, start: int, end: int) -> None:
        while start < end:
            after = start + self.program.instructions[start].chain
            piece = self.program.instructions[start:after]
            self._timed(piece, super()._run, step, start, after)
            start = after

    def _call_torch(self, call: TorchCall, *args: Any) -> None:
        self._timed(call, super()._call_torch, call, *args)

    def _timed(
        self, piece: list[Instruction] | TorchCall, function: Callable[..., None], *args: Any
    ) -> None:
        start = time.perf_counter()
        function(*args)
        self.seconds.append(time.perf_counter() - start)
        self.pieces.append(piece)


@torch.inference_mode()
def program_kernels(
    name: str, step: CPUStep, input_ids: torch.Tensor, ctx: ForwardContext, rounds: int
) -> StepKernels:
    """The kernels of `step` over one sequence, medians of `rounds`."""
    timed = TimedStep(step.program)
    timed(input_ids, ctx)
    whole, pieces = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        step(input_ids, ctx)
        whole.append(time.perf_counter() - start)
        timed(input_ids, ctx)
        pieces.append(timed.seconds)
    medians = [statistics.median(times) for times in zip(*pieces, strict=True)]
    rows = len(input_ids)
    sampled = rows if ctx.logit_rows is None else len(ctx.logit_rows)
    sizes = rows, sampled, ctx.paged.max_context_len, step.program.dtype.itemsize
    alike: dict[tuple[str, str], list[tuple[float, Cost | None]]] = {}
    for piece, seconds in zip(timed.pieces, medians, strict=True):
        found = _name(piece), _shape(piece)
        alike.setdefault(found, []).append((seconds, piece_cost(piece, *sizes)))
    kernels = [_sum(*found, calls) for found, calls in alike.items()]
    return StepKernels.of(
        name, statistics.median(whole), "the compiled program, in pieces", kernels
    )


def _sum(name: str, shape: str, calls: Sequence[tuple[float, Cost | None]]) -> KernelTime:
    costs = [cost for _, cost in calls if cost is not None]
    total = sum(costs, Cost(0, 0)) if len(costs) == len(calls) else None
    return KernelTime(name, shape, len(calls), sum(seconds for seconds, _ in calls), total)


def _name(piece: list[Instruction] | TorchCall) -> str:
    if isinstance(piece, TorchCall):
        return f"{piece.name} (torch)"
    return " + ".join(dict.fromkeys(Opcode(each.opcode).name.lower() for each in piece))


def _shape(piece: list[Instruction] | TorchCall) -> str:
    if isinstance(piece, TorchCall):
        return ""
    first = piece[0]
    if first.opcode in (Opcode.LINEAR, Opcode.EXPERT_LINEAR, Opcode.SCORE_EXPERTS):
        return f"{first.k} -> {_outputs(first)}"
    if first.opcode in (Opcode.ATTEND, Opcode.ABSORB, Opcode.READ_LATENT):
        heads = first.attention
        return f"{heads.heads}/{heads.kv_heads} heads of {heads.head_dim}"
    return str(first.n)


def _outputs(product: Instruction) -> int:
    """Rows of the weight: a gated product makes two numbers out of which one is kept."""
    gated = product.opcode != Opcode.SCORE_EXPERTS and product.kind == Epilogue.GATED
    return product.n * (2 if gated else 1)


def piece_cost(
    piece: list[Instruction] | TorchCall, rows: int, sampled: int, context: int, itemsize: int
) -> Cost | None:
    """What a piece moves and computes at least in a step of one sequence.

    None: what torch does is not known.

    Args:
        rows: tokens of the step.
        sampled: those whose logits are wanted.
        context: tokens of the sequence, those of the step included.
    """
    if isinstance(piece, TorchCall):
        return None
    costs = (_cost(each, sampled if each.sampled else rows, context, itemsize) for each in piece)
    return sum(costs, Cost(0, 0))


def _cost(each: Instruction, rows: int, context: int, itemsize: int) -> Cost:
    heads, latent = each.attention, each.latent
    if each.opcode in (Opcode.LINEAR, Opcode.SCORE_EXPERTS):
        return linear_cost(rows * each.times, each.k, _outputs(each), itemsize)
    if each.opcode == Opcode.EXPERT_LINEAR:  # spread evenly over the experts
        chosen = rows * each.times
        one = linear_cost(chosen, each.k, _outputs(each), itemsize)
        others = min(each.routing.experts, chosen) - 1
        return one + Cost(others * each.k * _outputs(each) * itemsize, 0)
    if each.opcode == Opcode.ATTEND:
        shape = AttentionShape(
            heads.heads,
            heads.kv_heads,
            heads.head_dim,
            each.n // heads.heads,
            latent=each.keys == each.values,
            itemsize=itemsize,
            cache_itemsize=itemsize,
        )
        return paged_attention_cost(shape, [rows], [context], heads.window or heads.chunk or None)
    if each.opcode in (Opcode.ABSORB, Opcode.READ_LATENT):
        width = latent.nope if each.opcode == Opcode.ABSORB else latent.value
        weights = heads.heads * width * latent.rank
        through = rows * heads.heads * (width + latent.rank)
        return Cost((weights + through) * itemsize, 2 * rows * weights)
    read = rowwise_cost(rows * each.times, each.k, itemsize, 1 + (each.input2 != NOTHING), 0)
    return read + rowwise_cost(rows * each.times, each.n, itemsize, 0, 1 + (each.out2 != NOTHING))
