"""Ranks launched as torchrun launches them: one process each, told through the environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def launch(
    command: Sequence[str], size: int, path: Sequence[Path] = ()
) -> list[subprocess.Popen[str]]:
    """Start `python *command` once a rank, with `path` before all else on its path."""
    folders = (*path, TESTS, TESTS / "architectures", TESTS / "distributed", TESTS.parent)
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(
    ranks: Sequence[subprocess.Popen[str]], limit: float = 120
) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of every rank; none is left running."""
    try:
        texts = [rank.communicate(timeout=limit) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [(rank.returncode, *text) for rank, text in zip(ranks, texts, strict=True)]
