"""How fast and how lean weights load, against transformers and against bare reading.

    python benchmarks/loader.py                     # 4.2 GB twice over: needs 9 GB of disk
    python benchmarks/loader.py --gigabytes 1.5 --rounds 3

Every load runs in a process of its own (see `loader_contenders`), contenders take turns, and what
is reported are medians and their ratios, with the load of the machine beside them: on a shared
machine single times mean little. Cold runs evict the files from the page cache first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from loader_checkpoints import TINY, sizes_for, write_checkpoint

RANKS = ("rank0", "rank1", "rank2", "rank3")
WARM = {
    "phi3": ("transformers", "mapped"),
    "llama": ("transformers", "bare", "bare-touched", "copied", "mapped"),
}
COLD = {"phi3": ("transformers", "mapped"), "llama": ("transformers", "copied", "mapped", "bare")}
COLD_TP = ("sliced", "rank0")


@dataclass
class Results:
    """What the runs gave: by (temperature, checkpoint, contender) one dict a round."""

    sizes: dict[str, int] = field(default_factory=dict)
    runs: dict[tuple[str, str, str], list[dict[str, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    together: list[float] = field(default_factory=list)  # bytes that four ranks read, each round
    loads: list[float] = field(default_factory=list)

    def median(self, run: str, key: str) -> float:
        return statistics.median(r[key] for r in self.runs[tuple(run.split())])

    def ratio(self, run: str, key: str, other: str, other_key: str) -> float:
        """The median over the rounds of what one run took, as a multiple of another."""
        pairs = zip(self.runs[tuple(run.split())], self.runs[tuple(other.split())], strict=True)
        return statistics.median(mine[key] / theirs[other_key] for mine, theirs in pairs)


class Bench:
    """Runs contenders on the checkpoints below one folder."""

    def __init__(self, folder: Path, gigabytes: float) -> None:
        self.folder = folder
        self.results = Results()
        for kind in ("llama", "phi3"):
            write_checkpoint(folder / f"tiny-{kind}", kind, TINY)
            size = write_checkpoint(folder / kind, kind, sizes_for(gigabytes))
            self.results.sizes[kind] = size

    def round(self) -> None:
        """Every contender once, warm and cold."""
        for kind, names in WARM.items():
            self._read_all(kind)
            for name in names:
                self._keep("warm", kind, name)
        for kind, names in COLD.items():
            for name in names:
                self._evict(kind)
                self._keep("cold", kind, name)
        for name in COLD_TP:
            self._evict("llama")
            self._keep("cold", "llama", name)
        self._evict("llama")
        gate = self.folder / "gate"
        gate.unlink(missing_ok=True)
        processes = [self._start("llama", name, gate) for name in RANKS]
        while not all(gate.with_suffix(f".{name}").exists() for name in RANKS):
            if any(process.poll() for process in processes):
                raise SystemExit("a rank failed")
        gate.touch()
        self.results.together.append(sum(self._finish(p)["read"] for p in processes))
        for name in RANKS:
            gate.with_suffix(f".{name}").unlink()

    def _keep(self, temperature: str, kind: str, name: str) -> None:
        result = self._finish(self._start(kind, name))
        self.results.loads.append(os.getloadavg()[0])
        self.results.runs[temperature, kind, name].append(result)
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in result.items())
        print(f"{temperature} {kind} {name}: {numbers}", file=sys.stderr, flush=True)

    def _start(self, kind: str, name: str, gate: Path | None = None) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("loader_contenders.py")
        places = [self.folder / kind, self.folder / f"tiny-{kind}", *([gate] if gate else [])]
        command = [sys.executable, str(script), name, *map(str, places)]
        path = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
        quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment = {**os.environ, **quiet, "PYTHONPATH": path}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def _finish(self, process: subprocess.Popen[str]) -> dict[str, float]:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args} failed")
        return json.loads(out.splitlines()[-1])

    def _evict(self, kind: str) -> None:
        for file in (self.folder / kind).glob("*.safetensors"):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _read_all(self, kind: str) -> None:
        for file in (self.folder / kind).glob("*.safetensors"):
            with file.open("rb", buffering=0) as stream:
                while stream.read(1 << 24):
                    continue


def table(results: Results) -> str:
    """The targets and what was measured, as Markdown."""
    size = results.sizes["llama"]
    own = size / len(RANKS)

    def gigabytes(run: str) -> str:
        return f"{results.median(run, 'read') / 1e9:.2f} GB from disk"

    def row(what: str, target: str, seen: float, *detail: str) -> str:
        return f"| {what} | {target} | {seen:.2f} | {'; '.join(detail)} |"

    def seconds(*runs: tuple[str, str]) -> str:
        return " : ".join(f"{results.median(run, key):.2f} s" for run, key in runs)

    def versus(what: str, target: str, run: str, key: str, other: str, other_key: str) -> str:
        detail = seconds((run, key), (other, other_key))
        return row(what, target, results.ratio(run, key, other, other_key), detail)

    peak = results.median("warm llama copied", "peak")
    mapped = results.median("warm llama mapped", "peak")
    llama, phi3 = "llama", "phi3"
    lines = [
        "| load | target | seen | medians |",
        "| --- | --- | --- | --- |",
        versus("warm, unmerged map : transformers", "≤ 1.2", f"warm {phi3} mapped", "seconds",
               f"warm {phi3} transformers", "seconds"),
        versus("the same, every page touched", "", f"warm {phi3} mapped", "touched",
               f"warm {phi3} transformers", "touched"),
        versus("warm, merged, mmap=false : bare preadv", "≤ 1.15", f"warm {llama} copied",
               "seconds", f"warm {llama} bare", "seconds"),
        versus("the same : bare preadv into touched memory", "", f"warm {llama} copied",
               "seconds", f"warm {llama} bare-touched", "seconds"),
        versus("warm, merged, mmap=auto : bare preadv", "", f"warm {llama} mapped", "seconds",
               f"warm {llama} bare", "seconds"),
        row("peak RSS, mmap=false : checkpoint", f"≤ {1.05 + 200e6 / size:.2f}", peak / size,
            f"{peak / 1e9:.2f} GB : {size / 1e9:.2f} GB"),
        row("peak RSS, mmap=auto, touched : checkpoint", f"≤ {1.05 + 200e6 / size:.2f}",
            mapped / size, f"{mapped / 1e9:.2f} GB : {size / 1e9:.2f} GB"),
        versus("cold, merged, mmap=auto, touched : transformers, touched", "≤ 0.7",
               f"cold {llama} mapped", "touched", f"cold {llama} transformers", "touched"),
        versus("cold, merged, mmap=false, touched : transformers, touched", "≤ 0.7",
               f"cold {llama} copied", "touched", f"cold {llama} transformers", "touched"),
        versus("cold, unmerged, mmap=auto, touched : transformers, touched", "≤ 0.7",
               f"cold {phi3} mapped", "touched", f"cold {phi3} transformers", "touched"),
        row("cold, tp=4, rank 0 alone : its own bytes", "≤ 1.6",
            results.median("cold llama rank0", "read") / own, gigabytes("cold llama rank0")),
        row("the same by safetensors slices", "", results.median("cold llama sliced", "read") / own,
            gigabytes("cold llama sliced")),
        row("cold, tp=4, all ranks at once : checkpoint", "1",
            statistics.median(results.together) / size,
            f"{statistics.median(results.together) / 1e9:.2f} GB from disk"),
    ]  # fmt: skip
    return "\n".join(lines)


def machine(results: Results, rounds: int) -> str:
    """Under what conditions the table was made."""
    names = ("torch", "transformers", "safetensors")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    sizes = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in results.sizes.items())
    loads = f"{min(results.loads):.1f} to {max(results.loads):.1f}"
    return (
        f"{os.cpu_count()} cores ({_cpu()}), Linux {platform.release()}, Python "
        f"{platform.python_version()}, {versions}; bf16 in shards of 1 GB: {sizes}; medians of "
        f"{rounds} rounds; load average {loads}"
    )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.2, help="size of each checkpoint")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the checkpoints there")
    options = parser.parse_args(argv)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="loader-"))
    try:
        bench = Bench(folder, options.gigabytes)
        for _ in range(options.rounds):
            bench.round()
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    print(f"{machine(bench.results, options.rounds)}\n\n{table(bench.results)}")


if __name__ == "__main__":
    main()
