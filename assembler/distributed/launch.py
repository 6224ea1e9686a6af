"""What a launcher such as torchrun says of this process, held against the size that is wanted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from assembler.errors import OptionError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """One process among those that a launcher started."""

    rank: int
    size: int
    local_rank: int  # among the processes of this machine
    local_size: int


def find_launch(size: int, environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch this process belongs to; None when it was started alone.

    Args:
        size: the ranks that the model is to be split over.

    Raises:
        OptionError: the launcher started another number of ranks, or its variables make no sense.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    missing = [name for name in _NEEDED if name not in environment]
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", world))
    except ValueError as error:
        raise OptionError(f"the launcher's RANK and WORLD_SIZE are no numbers: {error}") from None
    if world != size:
        raise OptionError(
            f"{world} {'rank was' if world == 1 else 'ranks were'} launched (WORLD_SIZE={world}) "
            f"but tensor_parallel_size is {size}: pass tp={world} (tensor_parallel_size={world} "
            f"in Python), launch with --nproc-per-node {size}, or start one process without "
            "torchrun, which then starts the other ranks itself"
        )
    if world == 1:
        return None
    if missing:
        raise OptionError(f"RANK is set but {', '.join(missing)} is not: launch with torchrun")
    return Launch(rank, world, local_rank, local_size)
