"""Rank processes that this process starts on its own machine, watches and ends.

They are started as commands and not forked or spawned by `multiprocessing`: nothing of the caller's
program is imported again, so scripts need no `if __name__ == "__main__"` and notebooks work. A rank
holds the other end of a pipe; when the pipe closes, its parent is gone, and it ends at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_PATIENCE = 5.0  # seconds a rank gets to end by itself


class RankProcesses:
    """The ranks 1 to size - 1, each a process."""

    def __init__(self, module: str, size: int, job: Mapping[str, Any], threads: int | None) -> None:
        """Start `python -m module` for each rank; it reads `job` and its rank as a line of JSON.

        Args:
            threads: CPU threads of each rank; None leaves that to torch.
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._processes: dict[int, subprocess.Popen[str]] = {}
        try:
            for rank in range(1, size):
                process = subprocess.Popen(
                    [sys.executable, "-m", module],
                    stdin=subprocess.PIPE,
                    stdout=2,  # stdout is the caller's alone
                    env=environment,
                    text=True,
                )
                self._processes[rank] = process
                with suppress(BrokenPipeError):  # it died at once, which `dead` will tell
                    process.stdin.write(json.dumps({**job, "rank": rank}) + "\n")
                    process.stdin.flush()
        except BaseException:
            self.end()
            raise

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by rank."""
        return {rank: process.pid for rank, process in self._processes.items()}

    def dead(self) -> dict[int, int]:
        """Exit status of the ranks that have ended, by rank; negative: the signal."""
        polled = {rank: process.poll() for rank, process in self._processes.items()}
        return {rank: status for rank, status in polled.items() if status is not None}

    def end(self, patience: float = 0.0) -> None:
        """See that all have ended: by themselves within `patience` seconds, else killed."""
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
            if process.poll() is None:
                process.kill()
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()

    def end_gently(self) -> None:
        """End ranks that have been told to stop."""
        self.end(_PATIENCE)


def read_job() -> dict[str, Any]:
    """In a rank's process: its job. From then on the process ends with its parent."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return job


def _end_with_parent() -> None:
    # Not sys.stdin: its lock would be held here while the interpreter shuts down.
    while os.read(0, 4096):
        continue
    os._exit(1)
