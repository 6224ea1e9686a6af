"""One measured load in a process of its own: `loader_contenders.py NAME FOLDER TINY [ready-file]`.

Prints JSON: seconds to load, seconds until every page was touched, bytes read from disk, growth of
the peak resident size. Imports, a tiny load and pre-faulting as much memory as the load will need
come before the clock starts: a virtual machine may take seconds a gigabyte to give memory back.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

import assembler
from assembler.blocks.parallel import TensorParallel
from assembler.loading import assemble, load_weights

BF16 = torch.bfloat16
TP = 4
CHUNK = 16 << 20


def transformers(folder: Path) -> object:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=BF16)


def mapped(folder: Path) -> object:
    return assembler.load_model(folder, dtype=BF16, mmap="auto")


def copied(folder: Path) -> object:
    return assembler.load_model(folder, dtype=BF16, mmap=False)


def rank(folder: Path, number: int = 0) -> object:
    return load_weights(assemble(folder, tp=TensorParallel(number, TP)), BF16)


def sliced(folder: Path) -> object:
    """What rank 0 of 4 gets from safetensors' own slices."""
    plan = assemble(folder, tp=TensorParallel(0, TP)).plan
    files: dict[Path, object] = {}
    kept = []
    for piece in plan.pieces:
        file = files.setdefault(piece.info.file, safe_open(piece.info.file, "pt"))
        window = [slice(None)] * len(piece.info.shape)
        for op in piece.ops:
            window[op.dim] = slice(op.start, op.stop)
        kept.append(file.get_slice(piece.source)[tuple(window)].clone())
    return kept


def bare(folder: Path, touched: bool = False) -> object:
    """Two threads of preadv over all files, into memory allocated before the clock starts."""
    files = sorted(folder.glob("*.safetensors"))
    sizes = [file.stat().st_size for file in files]
    memory = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    if touched:
        for tensor in memory:
            tensor.zero_()
    views = [memoryview(tensor.numpy()) for tensor in memory]
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    jobs = iter([(f, at) for f, size in enumerate(sizes) for at in range(0, size, CHUNK)])
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            f, at = job
            stop = min(at + CHUNK, sizes[f])
            while at < stop:
                at += os.preadv(descriptors[f], [views[f][at:stop]], at)

    threads = [threading.Thread(target=work) for _ in range(2)]
    CLOCK.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return memory


class Clock:
    """Starts with the load, or again when a contender has allocated what is given to it."""

    def start(self) -> None:
        self.read, self.began = _disk_bytes(), time.perf_counter()

    def stop(self) -> tuple[float, int]:
        return time.perf_counter() - self.began, _disk_bytes() - self.read


CLOCK = Clock()
CONTENDERS: dict[str, Callable[[Path], object]] = {
    "transformers": transformers,
    "mapped": mapped,
    "copied": copied,
    "bare": bare,
    "bare-touched": lambda folder: bare(folder, touched=True),
    "sliced": sliced,
    **{f"rank{n}": lambda folder, n=n: rank(folder, n) for n in range(TP)},
}


def touch(loaded: object) -> int:
    """Read one byte of every page of the weights."""
    tensors = loaded if isinstance(loaded, list) else list(loaded.parameters())
    flat = (t.detach().contiguous().view(-1).view(torch.uint8) for t in tensors)
    return sum(int(t[:: mmap.PAGESIZE].sum()) for t in flat)


def prefault(nbytes: int) -> None:
    with mmap.mmap(-1, nbytes) as memory:
        for at in range(0, nbytes, mmap.PAGESIZE):
            memory[at] = 1


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _disk_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def main(name: str, folder: Path, tiny: Path, gate: Path | None) -> None:
    contender = CONTENDERS[name]
    touch(contender(tiny))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    share = TP / 2 if name.startswith(("rank", "sliced")) else 1
    prefault(int(1.2 * size / share) & -mmap.PAGESIZE)
    if gate is not None:  # ranks that load together wait for each other
        gate.with_suffix(f".{name}").touch()
        while not gate.exists():
            time.sleep(0.01)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = _status("VmRSS")
    CLOCK.start()
    loaded = contender(folder)
    seconds, _ = CLOCK.stop()
    touch(loaded)
    touched, read = CLOCK.stop()
    peak = _status("VmHWM") - before
    print(json.dumps({"seconds": seconds, "touched": touched, "read": read, "peak": peak}))


if __name__ == "__main__":
    main(
        sys.argv[1],
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        Path(sys.argv[4]) if sys.argv[4:] else None,
    )
