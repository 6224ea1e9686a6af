"""The tables that rows of a program's steps find their cosines, sines and factors in."""

from __future__ import annotations

import ctypes

import torch

from assembler.blocks.context import ForwardContext
from assembler.engine.lowering.program import Program, RowTables
from assembler.kernels.cpu_program import addresses

_FIRST_POSITIONS = 1024
_POSITIONS_AT_ONCE = 8192


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
        made = {
            number: self._grown(tables, self._by_position.get(number, []), num_positions)
            for number, tables in enumerate(self._program.tables)
            if tables.by_position
        }
        found = None
        if len(made) == len(self._program.tables):
            found = addresses([table for known in made.values() for table in known])
        # All of it or, where memory is refused, none: the engine goes on after that.
        self._by_position, self._addresses, self._num_positions = made, found, num_positions

    def _grown(
        self, tables: RowTables, known: list[torch.Tensor], num_positions: int
    ) -> list[torch.Tensor]:
        """`known` with more rows behind; in parts, for each takes many times its own memory."""
        parts = [known] if known else []
        for start in range(self._num_positions, num_positions, _POSITIONS_AT_ONCE):
            end = min(num_positions, start + _POSITIONS_AT_ONCE)
            positions = torch.arange(start, end, device="cpu")  # whatever the user's default is
            # What depends on the length of the text is not found by position.
            parts.append(self._made(tables, ForwardContext(positions, positions[-1:] + 1)))
        return [torch.cat(rows) for rows in zip(*parts, strict=True)]

    def _made(self, tables: RowTables, ctx: ForwardContext) -> list[torch.Tensor]:
        return [*tables.make(ctx, self._program.dtype)]
