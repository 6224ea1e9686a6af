"""Runs the copies of a plan in file order on several reader threads.

Two and more threads keep a disk's queue filled and use what memory bandwidth there is; the work
itself (reading, changing dtype, dequantising) leaves the interpreter's lock alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from queue import SimpleQueue

import torch

from assembler.errors import CheckpointError
from assembler.weights.copy_jobs import Job, tensor_jobs
from assembler.weights.file_reader import FileReader
from assembler.weights.plan import Piece
from assembler.weights.staging import Staging, make_staging

MOST_READERS = 4

Report = int | BaseException | None  # bytes done, a failure, the end of a thread


def default_readers() -> int:
    """Reader threads: a few more than cores on a small machine, which waits for its disk."""
    return min(MOST_READERS, 2 * (os.cpu_count() or 1))


def stream_pieces(
    pieces: Iterable[Piece],
    parameters: Mapping[str, torch.Tensor],
    reader: FileReader,
    progress: Callable[[int], object],
    readers: int,
) -> None:
    """Load pieces (sorted in file order) into materialised parameters.

    Args:
        parameters: by name; all on one device.
        progress: called on this thread with bytes on disk as they are done; they add up to the
            size of the tensors.
        readers: number of threads.

    Raises:
        CheckpointError: names the file and the tensor of the first failure. No thread is left
            running then.
    """
    pieces = list(pieces)
    if not pieces:
        return
    device = next((p.device for p in parameters.values()), torch.device("cpu"))
    reports: SimpleQueue[Report] = SimpleQueue()
    jobs = _JobQueue(pieces, parameters)
    threads = [
        threading.Thread(target=_work, args=(jobs, make_staging(reader, device), reports))
        for _ in range(readers)
    ]
    try:
        for thread in threads:
            thread.start()
        _follow(reports, len(threads), progress)
    finally:
        jobs.stop()
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()


def _follow(reports: SimpleQueue[Report], running: int, progress: Callable[[int], object]) -> None:
    """Pass progress on until every thread has ended; raise the first failure."""
    while running:
        report = reports.get()
        if report is None:
            running -= 1
        elif isinstance(report, BaseException):
            raise report
        else:
            progress(report)


class _JobQueue:
    """Hands out jobs in file order, making those of a tensor when its turn comes."""

    def __init__(self, pieces: Iterable[Piece], parameters: Mapping[str, torch.Tensor]) -> None:
        self._jobs = _jobs_of(pieces, parameters)
        self._lock = threading.Lock()
        self._stopped = False

    def next(self) -> tuple[Job, Piece, int] | None:
        """A job, a piece of its tensor, and the bytes it stands for; None when there is no more."""
        with self._lock:
            return None if self._stopped else next(self._jobs, None)

    def stop(self) -> None:
        self._stopped = True


def _jobs_of(
    pieces: Iterable[Piece], parameters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[Job, Piece, int]]:
    for _, group in groupby(pieces, key=lambda piece: piece.source):
        own = list(group)
        jobs = tensor_jobs(own, parameters)
        size, count = own[0].info.nbytes, len(jobs)
        for n, job in enumerate(jobs):
            yield job, own[0], size * (n + 1) // count - size * n // count


def _work(jobs: _JobQueue, staging: Staging, reports: SimpleQueue[Report]) -> None:
    """One reader thread: take jobs until there are none, or one fails anywhere."""
    piece = None
    try:
        with torch.no_grad():
            while (item := jobs.next()) is not None:
                job, piece, nbytes = item
                job.run(staging)
                piece = None
                reports.put(nbytes)
            staging.finish()
    except CheckpointError as error:
        reports.put(error)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        reports.put(_failure(error, piece))
    except BaseException as error:
        reports.put(error)
    finally:
        reports.put(None)


def _failure(error: Exception, piece: Piece | None) -> BaseException:
    if piece is None:
        return error
    reason = "out of memory" if isinstance(error, MemoryError) and not str(error) else error
    failure = CheckpointError(
        f"{piece.info.file}: loading tensor '{piece.source}' into {piece.target} failed: {reason}"
    )
    failure.__cause__ = error
    return failure
