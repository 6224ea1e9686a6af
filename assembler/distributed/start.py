"""Bringing ranks together: those a launcher started, or those this process starts itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from assembler.blocks.parallel import TensorParallel
from assembler.distributed.launch import Launch
from assembler.distributed.processes import RankProcesses
from assembler.distributed.ranks import Ranks
from assembler.errors import OptionError, RankError

_LOOPBACK = "127.0.0.1"
_MEETING = timedelta(minutes=3)  # until all ranks are there
_COLLECTIVE = timedelta(minutes=10)  # until all ranks have reached the same point of a step


def join_ranks(launch: Launch, device: torch.device) -> Ranks:
    """Meet the other ranks of a launch (torchrun). `device` is this rank's own.

    Raises:
        RankError: they do not come.
    """
    try:
        store = _launch_store(launch)
        # One process may hold several models one after the other: each has keys of its own.
        number = store.add(f"assembler/models of rank {launch.rank}", 1)
        store = dist.PrefixStore(f"assembler/{number}", store)
        return _connect(store, launch.rank, launch.size, device, None)
    except RuntimeError as error:
        raise RankError(f"rank {launch.rank} did not meet the other ranks: {error}") from error


def start_ranks(module: str, size: int, job: Mapping[str, Any], device: torch.device) -> Ranks:
    """Start the other ranks on this machine as `python -m module` and meet them, as rank 0.

    Args:
        job: what they are told, JSON-ready; `join_parent` gets the rest.

    Raises:
        OptionError: there are fewer GPUs than ranks.
        RankError: a rank ends before it has come, with its error.
    """
    if device.type == "cuda" and torch.cuda.device_count() < size:
        raise OptionError(
            f"tensor_parallel_size={size} takes {size} GPUs, {torch.cuda.device_count()} are here"
        )
    store = dist.TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False)
    threads = _threads_each(size, device)
    if threads is not None:
        torch.set_num_threads(threads)
    processes = RankProcesses(module, size, {**job, "size": size, "port": store.port}, threads)
    try:
        _await_arrivals(store, size, processes)
        ranks = _connect(store, 0, size, device, processes)
    except BaseException:
        processes.end()
        raise
    if device.type == "cuda":
        threading.Thread(target=_abort_when_a_rank_dies, args=(ranks,), daemon=True).start()
    return ranks


def join_parent(rank: int, size: int, port: int, device: torch.device) -> Ranks:
    """In a process of `start_ranks`: meet the others."""
    store = dist.TCPStore(_LOOPBACK, port, is_master=False)
    store.set(f"arrived/{rank}", "")
    return _connect(store, rank, size, device, None)


def _launch_store(launch: Launch) -> dist.Store:
    if dist.is_initialized():  # the caller's program has met already
        return dist.distributed_c10d._get_default_store()
    store, _, _ = next(dist.rendezvous("env://", launch.rank, launch.size, timeout=_MEETING))
    return store


def _await_arrivals(store: dist.Store, size: int, processes: RankProcesses) -> None:
    """Wait until all ranks have imported what they need, or one of them has ended."""
    meeting = Ranks(TensorParallel(0, size), None, store, processes)
    keys = [f"arrived/{rank}" for rank in range(1, size)]
    deadline = time.monotonic() + _MEETING.total_seconds()
    while not store.check(keys):
        meeting.check()
        if time.monotonic() > deadline:
            raise RankError(f"the {size - 1} other ranks did not start within {_MEETING}")
        time.sleep(0.02)


def _connect(
    store: dist.Store,
    rank: int,
    size: int,
    device: torch.device,
    processes: RankProcesses | None,
) -> Ranks:
    """Connect the groups. They are this model's own: torch's default group is left alone."""
    control = dist.ProcessGroupGloo(dist.PrefixStore("control", store), rank, size, _COLLECTIVE)
    group: Any = control
    if device.type == "cuda":
        torch.cuda.set_device(device)
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = _COLLECTIVE
        group = dist.ProcessGroupNCCL(dist.PrefixStore("data", store), rank, size, options)
    return Ranks(TensorParallel(rank, size, group), control, store, processes)


def _threads_each(size: int, device: torch.device) -> int | None:
    """This machine's cores dealt out over the ranks, unless the user has decided."""
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, torch.get_num_threads() // size)


def _abort_when_a_rank_dies(ranks: Ranks) -> None:
    """NCCL does not see a dead rank: break the collective that waits for it."""
    while ranks.ended is None:
        if ranks.processes.dead():
            with suppress(RuntimeError):
                ranks.tp.group.abort()
            return
        time.sleep(0.5)
