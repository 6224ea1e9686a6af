"""Steps on a CPU: the whole model in one call of the compiled kernels.

A decode reads every weight once and does little with it; what a framework adds to each of the many
small operations then counts as much as they do. A prefill writes large intermediate results, which
cost page faults and passes over memory. The model is lowered to a program (`lowering`), and a step
is one call in memory that is there already; what has no instruction is left to torch in between.
"""

from __future__ import annotations

import logging
from array import array
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
from assembler.engine.page_table import PageTable
from assembler.engine.step_inputs import StepInputs
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
            self._logits = torch.empty(0, program.vocab_size, dtype=program.dtype, device="cpu")
            self._every_row = torch.arange(program.max_rows, device="cpu")
            self._rows = torch.arange(program.max_rows, dtype=torch.int32, device="cpu")
        self._tables = StepTables(program)
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")
        self._num_logits = 0  # rows of `_logits`
        self._threads = 0  # that there is scratch memory for
        self._places: dict[str, int] = {}  # fields of a `Step`: the addresses of all this
        self._scratch_size = scratch_size(self._instructions, program.max_rows)
        self._is_all = not (program.calls or self._tables.need_context)

    def fits(self, num_tokens: int) -> bool:
        """Whether a step of so many tokens is small enough."""
        return num_tokens <= self.program.max_rows

    def takes_numbers(self, inputs: StepInputs) -> bool:
        """Whether the program does all of this step, so that `run` needs no tensors for torch."""
        return self._is_all and self.fits(len(inputs.input_ids))

    def run(self, inputs: StepInputs, pages: PageTable) -> torch.Tensor:
        """The logits [R, vocab] of a step, valid until the next one.

        What the step feeds the model is handed over as it is: to make a tensor of each list took a
        tenth of a millisecond, which is felt beside the 10 of a small model's token.

        Args:
            pages: of the sequences of `inputs`, in their order.
        Raises:
            IndexError: a position that a table of positions does not have.
        """
        num_positions, rows = max(inputs.context_lens), inputs.logit_rows
        self._check_positions(num_positions)
        step = self._step(len(inputs.input_ids), None if rows is None else len(rows))
        tokens, positions = array("q", inputs.input_ids), array("q", inputs.positions)
        slots, wanted = array("q", inputs.slot_mapping), array("q", rows or ())
        sequence_of = array("i", inputs.of_each_token(pages.numbers))
        step.tokens, step.positions = _address(tokens), _address(positions)
        step.slots, step.sequence_of = _address(slots), _address(sequence_of)
        if rows is not None:
            step.wanted = _address(wanted)
        step.page_table, step.page_table_width = pages.address, pages.width
        tables = self._tables.addresses(num_positions)
        step.tables = addressof(tables)
        self._run_all(step)
        return self._logits_of(step)

    def __call__(self, input_ids: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
        """What the model gives: [T] -> logits [R, vocab]. They are valid until the next call.

        Raises IndexError for a position that a table of positions does not have.
        """
        paged = ctx.paged
        self._check_positions(paged.max_context_len)
        wanted = ctx.logit_rows
        step = self._step(len(input_ids), None if wanted is None else len(wanted))
        tables = self._tables.addresses(paged.max_context_len, ctx)
        sequence_of = self._sequences(ctx)
        step.tokens, step.positions = input_ids.data_ptr(), ctx.positions.data_ptr()
        step.slots, step.sequence_of = paged.slot_mapping.data_ptr(), sequence_of.data_ptr()
        if wanted is not None:
            step.wanted = wanted.data_ptr()
        step.page_table = paged.page_table.data_ptr()
        step.page_table_width = paged.page_table.shape[1]
        step.tables = addressof(tables)
        self._run_all(step, input_ids, ctx)
        return self._logits_of(step)

    def _step(self, rows: int, logit_rows: int | None) -> Step:
        """A step of so many tokens, without what differs from token to token.

        `logit_rows`: how many of them have logits; None: all of them.
        """
        threads = torch.get_num_threads()
        num_wanted = rows if logit_rows is None else logit_rows
        if num_wanted > self._num_logits or threads > self._threads:
            self._grow(num_wanted, threads)
        return Step(rows=rows, logit_rows=num_wanted, threads=threads, **self._places)

    def _run_all(
        self,
        step: Step,
        input_ids: torch.Tensor | None = None,
        ctx: ForwardContext | None = None,
    ) -> None:
        """Run the program, and torch in between; it needs the arguments if it does any of it."""
        start = 0
        for call in self.program.calls:
            assert input_ids is not None and ctx is not None
            self._run(step, start, call.before)
            self._call_torch(call, input_ids, self._logits_of(step), ctx)
            start = call.before
        self._run(step, start, len(self._instructions))

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

    def _check_positions(self, count: int) -> None:
        known = self.program.num_positions
        if known is not None and count > known:
            raise IndexError(f"position {count - 1} of a model that knows {known}")

    def _sequences(self, ctx: ForwardContext) -> torch.Tensor:
        """[T] int32: which sequence each token belongs to."""
        if ctx.paged.is_decode:
            return self._rows
        lengths = ctx.paged.cu_seqlens_q.diff()
        return torch.repeat_interleave(self._rows[: len(lengths)], lengths)

    def _logits_of(self, step: Step) -> torch.Tensor:
        whole = self._logits
        return whole if step.logit_rows == self._num_logits else whole[: step.logit_rows]

    def _grow(self, logit_rows: int, threads: int) -> None:
        """Make room for so many rows of logits and threads; it is kept for the most there were."""
        logits, scratch = self._logits, self._scratch
        with torch.inference_mode(False):
            if logit_rows > self._num_logits:
                logits = logits.new_empty(logit_rows, self.program.vocab_size)
            if threads > self._threads:
                scratch = scratch.new_empty(threads * self._scratch_size)
        memory = {
            "workspace": self._workspace,
            "logits": logits,
            "scratch": scratch,
            "wanted": self._every_row,
        }
        places = {name: tensor.data_ptr() for name, tensor in memory.items()}
        places["scratch_size"] = self._scratch_size
        # All of it or, where memory is refused, none: the engine goes on after that.
        self._places, self._logits, self._scratch = places, logits, scratch
        self._num_logits = max(self._num_logits, logit_rows)
        self._threads = max(self._threads, threads)


def _address(numbers: array) -> int:
    return numbers.buffer_info()[0]


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
