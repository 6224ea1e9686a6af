"""A process's place among the ranks of one model: what they tell each other, and how they end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import AllreduceOptions, BroadcastOptions, ReduceOp, Store

from assembler.blocks.parallel import TensorParallel
from assembler.distributed.failures import (
    Report,
    describe_death,
    is_lost_peer,
    leave_report,
    read_reports,
)
from assembler.distributed.processes import RankProcesses
from assembler.errors import RankError
from assembler.interrupts import held_back_interrupt

_FOREVER = timedelta(days=365)  # a rank without work waits for it
_LAST_WORDS = 3.0  # seconds in which a lost rank's report must appear
_HEADER = 1024  # integers of a step that travel in one message; more take a second one


class Ranks:
    """This rank's connection to the others.

    Attributes:
        tp: what the blocks are built with; its group carries the activations.
        processes: the other ranks, where this process has started them.
    """

    def __init__(
        self,
        tp: TensorParallel,
        control: Any,
        store: Store,
        processes: RankProcesses | None = None,
    ) -> None:
        """`control` is a group on the CPU for what is no activation; it may be `tp.group`."""
        self.tp = tp
        self.processes = processes
        self.ended: str | None = None  # why nothing can be run any more
        self._control = control
        self._store = store

    @property
    def size(self) -> int:
        """How many ranks there are, this one included."""
        return self.tp.size

    def fewest(self, count: int) -> int:
        """The smallest of the counts that all ranks give; every rank calls it."""
        options = AllreduceOptions()
        options.reduceOp = ReduceOp.MIN
        # The slowest rank may still be loading.
        options.timeout = _FOREVER
        counts = torch.tensor([count], dtype=torch.int64)
        self._control.allreduce([counts], options).wait()
        return int(counts)

    @contextmanager
    def step(self, inputs: torch.Tensor) -> Iterator[None]:
        """Rank 0: send the inputs [n] (int64) of a step that is run inside of the `with`.

        A failure in it leaves the ranks at different places, so it ends all of them. An interrupt
        is held back until the step is through.

        Raises:
            RankError: another rank has failed; its error is the message.
        """
        if self.ended is not None:
            raise RankError(self.ended)
        try:
            with held_back_interrupt():
                self._send(inputs)
                yield
        except BaseException as error:
            cause = self.fail(error)
            if cause is error:
                raise
            raise cause from error

    def receive(self) -> torch.Tensor | None:
        """Other ranks: the inputs of the next step, however long it takes; None: no more come."""
        message = self._broadcast(torch.empty(_HEADER, dtype=torch.int64), _FOREVER)
        length = int(message[0])
        if length == 0:
            return None
        if length < _HEADER:
            return message[1 : length + 1]
        return self._broadcast(torch.empty(length, dtype=torch.int64))

    def check(self) -> None:
        """Rank 0: raise `RankError` if a rank that it has started is gone."""
        if self.processes is not None and self.processes.dead():
            raise self.fail(RuntimeError("a rank has ended"))

    def fail(self, error: BaseException) -> BaseException:
        """End all ranks because of `error`; returns what to raise: the error that came first."""
        cause = self._cause(error)
        if self.ended is None:
            self.ended = f"this model has ended with an error: {cause}"
            if cause is error and not is_lost_peer(error):
                with suppress(RuntimeError):
                    leave_report(self._store, Report.of(error, self.tp.rank))
            self.close(tell=False)
        return cause

    def close(self, *, tell: bool = True) -> None:
        """End the other ranks (from rank 0) and leave the group. Repeated calls do nothing."""
        if self._control is None:
            return
        if tell and self.tp.rank == 0:
            with suppress(RuntimeError):  # a rank is gone already
                self._broadcast(torch.zeros(_HEADER, dtype=torch.int64))
        if self.ended is None:
            self.ended = "this model has been closed: its ranks have ended"
        groups, self._control = {id(g): g for g in (self._control, self.tp.group)}, None
        for group in groups.values():
            with suppress(RuntimeError):
                group.shutdown()
        self.tp.leave()
        if self.processes is not None:
            if tell:
                self.processes.end_gently()
            else:
                self.processes.end()

    def _send(self, inputs: torch.Tensor) -> None:
        message = torch.zeros(_HEADER, dtype=torch.int64)
        message[0] = len(inputs)
        if len(inputs) < _HEADER:
            message[1 : len(inputs) + 1] = inputs
        self._broadcast(message)
        if len(inputs) >= _HEADER:
            self._broadcast(inputs)

    def _broadcast(self, tensor: torch.Tensor, timeout: timedelta | None = None) -> torch.Tensor:
        options = BroadcastOptions()
        options.rootRank = 0
        if timeout is not None:
            options.timeout = timeout
        self._control.broadcast([tensor], options).wait()
        return tensor

    def _cause(self, error: BaseException) -> BaseException:
        """The error that came first: `error` itself, or what another rank left or died of."""
        deadline = time.monotonic() + (_LAST_WORDS if isinstance(error, RuntimeError) else 0)
        while True:
            found = self._others_error()
            if found is not None:
                return found
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        if not is_lost_peer(error):
            return error
        return RankError(
            f"rank {self.tp.rank} has lost another rank, which left no error: it was killed (as "
            f"the system does when memory runs out) or hangs\n{error}"
        )

    def _others_error(self) -> RankError | None:
        reports: list[Report] = []
        with suppress(RuntimeError):  # the store went down with the rank that held it
            reports = [r for r in read_reports(self._store) if r.rank != self.tp.rank]
        own = [report for report in reports if not report.lost_peer]
        if own:
            return RankError(str(own[0]))
        reported = {report.rank for report in reports}
        dead = self.processes.dead() if self.processes is not None else {}
        for rank, status in dead.items():
            if rank not in reported:
                return RankError(describe_death(rank, status))
        return None
