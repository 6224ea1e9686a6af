"""The tables that rows of a program's steps find their cosines, sines and factors in."""

from __future__ import annotations

import ctypes

import torch

from assembler.blocks.context import ForwardContext
from assembler.engine.lowering.program import Program, RowTables
from assembler.kernels.cpu_program import addresses

_FIRST_POSITIONS = 1024


class StepTables:
    """Makes them in torch: for the rows of a step, or once for as many positions as have come."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._num_positions = 0  # that the tables by position have
        self._by_position: dict[int, list[torch.Tensor]] = {}  # by their number among all
        self._addresses: ctypes.Array | None = None  # of these, if there are no others
        self._of_step: list[torch.Tensor] = []

    @property
    def need_context(self) -> bool:
        """Whether a table depends on more than positions."""
        return not all(tables.by_position for tables in self._program.tables)

    def addresses(self, num_positions: int, ctx: ForwardContext | None = None) -> ctypes.Array:
        """Where each table begins, for a step of positions below a number; until the next call.

        Tables by position grow by doubling. `ctx`: what the others are made for, if they are any.
        """
        if num_positions > self._num_positions:
            self._grow(max(num_positions, 2 * self._num_positions, _FIRST_POSITIONS))
        if self._addresses is not None:
            return self._addresses
        assert ctx is not None
        self._of_step = []
        for number, tables in enumerate(self._program.tables):
            known = self._by_position.get(number)
            self._of_step += self._made(tables, ctx) if known is None else known
        return addresses(self._of_step)

    def _grow(self, num_positions: int) -> None:
        tables = self._program.tables
        ctx = ForwardContext.dense(num_positions)
        self._by_position = {
            number: self._made(each, ctx) for number, each in enumerate(tables) if each.by_position
        }
        self._num_positions = num_positions
        if len(self._by_position) == len(tables):
            self._addresses = addresses([t for known in self._by_position.values() for t in known])

    def _made(self, tables: RowTables, ctx: ForwardContext) -> list[torch.Tensor]:
        return [*tables.make(ctx, self._program.dtype)]
