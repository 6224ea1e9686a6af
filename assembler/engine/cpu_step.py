"""Steps on a CPU: the whole model in one call of the compiled kernels.

A decode reads every weight once and does little with it; what a framework adds to each of the many
small operations then counts as much as they do. A prefill writes large intermediate results, which
cost page faults and passes over memory. The model is lowered to a program (`lowering`), and a step
is one call in memory that is there already; what has no instruction is left to torch in between.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from ctypes import addressof, sizeof
from typing import Any

import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.kv_cache import KVCache
from assembler.engine.lowering import NotLowered, Program, lower
from assembler.engine.lowering.program import Tokens, TorchCall, Value
from assembler.engine.step_tables import StepTables
from assembler.huge_pages import HugePages
from assembler.kernels.cpu_library import has_matrix_unit
from assembler.kernels.cpu_program import (
    LOGITS,
    Instruction,
    Step,
    can_run,
    run,
    scratch_size,
)

# Tokens of a step; more of them run in torch. Where the processor multiplies matrices by itself
# (AMX), torch's products of bfloat16 are the faster ones from some 64 rows on.
MAX_ROWS = 2048
MAX_ROWS_BESIDE_AMX = 64

_log = logging.getLogger(__name__)


class CPUStep:
    """A lowered model with the memory it works in. Not thread-safe."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._instructions = (Instruction * len(program.instructions))(*program.instructions)
        with torch.inference_mode(False):
            memory = HugePages(program.size * program.dtype.itemsize)
            self._workspace = memory.empty((program.size,), program.dtype)
            self._logits = torch.empty(0, program.vocab_size, dtype=program.dtype)
            self._every_row = torch.arange(program.max_rows)
            self._rows = torch.arange(program.max_rows, dtype=torch.int32)
        self._tables = StepTables(program)
        self._scratch = torch.empty(0)
        self._scratch_size = scratch_size(self._instructions, program.max_rows)

    def fits(self, input_ids: torch.Tensor) -> bool:
        """Whether a step of these tokens is small enough."""
        return input_ids.shape[0] <= self.program.max_rows

    def __call__(self, input_ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """What the model gives: [T] -> logits [R, vocab]. They are valid until the next call.

        Raises IndexError for a position that a table of positions does not have.
        """
        program, paged = self.program, ctx.paged
        self._check_positions(ctx.positions)
        threads = torch.get_num_threads()
        scratch = self._scratch_of(threads)
        wanted = self._every_row if ctx.logit_rows is None else ctx.logit_rows
        num_wanted = len(input_ids) if ctx.logit_rows is None else len(wanted)
        logits = self._logits_of(num_wanted)
        tables = self._tables.addresses(ctx)
        sequence_of = self._sequences(ctx)
        step = Step(
            workspace=self._workspace.data_ptr(),
            logits=logits.data_ptr(),
            scratch=scratch.data_ptr(),
            scratch_size=self._scratch_size,
            rows=len(input_ids),
            logit_rows=num_wanted,
            page_table_width=paged.page_table.shape[1],
            threads=threads,
            tokens=input_ids.data_ptr(),
            positions=ctx.positions.data_ptr(),
            slots=paged.slot_mapping.data_ptr(),
            wanted=wanted.data_ptr(),
            page_table=paged.page_table.data_ptr(),
            sequence_of=sequence_of.data_ptr(),
            tables=addressof(tables),
        )
        start = 0
        for call in program.calls:
            self._run(step, start, call.before)
            self._call_torch(call, input_ids, logits, ctx)
            start = call.before
        self._run(step, start, len(self._instructions))
        return logits

    def _run(self, step: Step, start: int, end: int) -> None:
        """Run the instructions from `start` on and before `end`."""
        if start < end:
            offset = start * sizeof(Instruction)
            step.program, step.length = addressof(self._instructions) + offset, end - start
            run(step, self.program.dtype)

    def _call_torch(
        self, call: TorchCall, input_ids: torch.Tensor, logits: torch.Tensor, ctx: ForwardContext
    ) -> None:
        """Do in torch what has no instruction."""

        def tensor(arg: Any) -> Any:
            if isinstance(arg, Tokens):
                return input_ids
            if not isinstance(arg, Value):
                return arg
            if arg.place == LOGITS:
                return logits
            numbers = self._workspace[arg.place : arg.place + len(input_ids) * arg.width]
            return numbers.view(-1, arg.width)

        context = (ctx,) if call.takes_context else ()
        results = call.function(*map(tensor, call.args), *context)
        if len(call.outs) == 1:
            results = (results,)
        for out, result in zip(call.outs, results, strict=True):
            tensor(out).copy_(result)

    def _check_positions(self, positions: torch.Tensor) -> None:
        known = self.program.num_positions
        if known is not None and int(positions.max()) >= known:
            raise IndexError(f"position {int(positions.max())} of a model that knows {known}")

    def _sequences(self, ctx: ForwardContext) -> torch.Tensor:
        """[T] int32: which sequence each token belongs to."""
        if ctx.paged.is_decode:
            return self._rows
        lengths = ctx.paged.cu_seqlens_q.diff()
        return torch.repeat_interleave(self._rows[: len(lengths)], lengths)

    def _logits_of(self, rows: int) -> torch.Tensor:
        """[rows, vocab], in memory that is kept for the most rows there have been."""
        if len(self._logits) < rows:
            with torch.inference_mode(False):
                self._logits = self._logits.new_empty(rows, self.program.vocab_size)
        return self._logits[:rows]

    def _scratch_of(self, threads: int) -> torch.Tensor:
        """Memory for each of the threads."""
        if len(self._scratch) < threads * self._scratch_size:
            with torch.inference_mode(False):
                self._scratch = torch.empty(threads * self._scratch_size)
        return self._scratch


def max_rows(dtype: torch.dtype) -> int:
    """The tokens of a step up to which our products are about as fast as torch's, or faster."""
    return MAX_ROWS_BESIDE_AMX if dtype == torch.bfloat16 and has_matrix_unit() else MAX_ROWS


def cpu_step(
    model: nn.Module, caches: Sequence[KVCache], device: torch.device, dtype: torch.dtype
) -> CPUStep | None:
    """The fast way for small steps of `model`; None where it has to run in torch.

    `dtype` is that of the weights and of the cache; a cache of 8 bits has no CPU kernels.
    """
    if device.type != "cpu":
        return None
    if dtype.itemsize == 1:
        _log.info("steps run in torch: there is no CPU kernel for a cache of 8 bits")
        return None
    try:
        program = lower(model, caches, max_rows(dtype), dtype)
    except NotLowered as reason:
        _log.info("steps run in torch: there is no CPU kernel for %s", reason)
        return None
    if not can_run(dtype):
        _log.info("steps run in torch: no CPU kernels for %s here", dtype)
        return None
    for name, count in Counter(call.name for call in program.calls).items():
        reason = program.reasons[name]
        _log.info("torch runs %s within the CPU kernels' steps, %d times: %s", name, count, reason)
    return CPUStep(program)
