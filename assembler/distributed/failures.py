"""How a rank that fails tells the others why, and which of several errors is the cause.

Reports go through the store that the ranks met at. It outlives the rank that failed, so whoever
loses the connection to that rank finds its last words there.
"""

from __future__ import annotations

import json
import signal
import traceback
from dataclasses import asdict, dataclass

from torch.distributed import Store

from assembler.errors import AssemblerError

_COUNT = "failures"


@dataclass(frozen=True)
class Report:
    """The error that ended a rank."""

    rank: int
    message: str  # of an AssemblerError, or a traceback
    lost_peer: bool  # it ended because it lost another rank

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Report:
        lost = is_lost_peer(error)
        if isinstance(error, AssemblerError):
            return cls(rank, str(error), lost)
        text = "".join(traceback.format_exception(error)).rstrip()
        return cls(rank, f"{type(error).__name__}: {error}\n{text}", lost)

    @classmethod
    def lost(cls, rank: int) -> Report:
        """Of a rank that ends because another one has."""
        return cls(rank, "another rank has ended", True)

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.message}"


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error came out of a collective: another rank is gone, or does not answer."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("/gloo/" in text or "NCCL" in text)


def leave_report(store: Store, report: Report) -> None:
    """Tell the other ranks; RuntimeError if the store is gone."""
    number = store.add(_COUNT, 1)
    store.set(f"failure/{number}", json.dumps(asdict(report)))


def read_reports(store: Store) -> list[Report]:
    """What the ranks have reported so far, the first report first."""
    count = store.add(_COUNT, 0)
    keys = [f"failure/{number}" for number in range(1, count + 1)]
    return [Report(**json.loads(store.get(key))) for key in keys if store.check([key])]


def describe_death(rank: int, status: int) -> str:
    """How a process ended that left no report; `status` as `subprocess` gives it."""
    if status >= 0:
        return f"rank {rank} ended with exit status {status} before it could say why"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"rank {rank} was killed ({name}{hint})"
