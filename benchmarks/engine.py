"""Generation against the engines a user would pick instead, in one run.

    python benchmarks/engine.py MODEL.gguf [--dtype bfloat16] [--rounds 5] [--threads 2]
        [--contenders assembler vllm openvino llama.cpp transformers ...]

The contenders, each a process of its own, take turns within every round, so that a machine whose
speed drifts is unfair to none of them; medians and ratios are printed. Those that are not installed
are named, with the command that installs them. See README.md beside this file.

Workloads: decoding one sequence; the prefill of 512 tokens; and W, 32 requests at once with
inputs of 32 to 256 and outputs of 32 to 128 tokens. All greedy, to the exact number of tokens.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from contenders import CONTENDERS, Worker, WorkerError
from contenders_setup import FOLDER, Setup, SetupError
from turns import HEAD, Batch, Runs, rows, take_turns

MAX_SEQS = 32
MAX_LEN = 1024
VOCABULARY = range(1000, 40_000)  # ids that any model has and that mean nothing special


def requests(shapes: Sequence[tuple[int, int]], seed: int, counts_prompts: bool = False) -> Batch:
    """Random prompts of these (input, output) lengths."""
    draw = random.Random(seed)
    prompts = [draw.choices(VOCABULARY, k=length) for length, _ in shapes]
    return Batch(prompts, [count for _, count in shapes], counts_prompts)


def mixed_shapes(count: int = MAX_SEQS) -> list[tuple[int, int]]:
    """The lengths of workload W."""
    draw = random.Random(0)
    return [(draw.randint(32, 256), draw.randint(32, 128)) for _ in range(count)]


WORKLOADS: Mapping[str, Batch] = {
    "decode": requests([(16, 64)], 0),
    "prefill": requests([(512, 1)], 1, counts_prompts=True),
    "W": requests(mixed_shapes(), 2),
}


def start(options: argparse.Namespace, stack: ExitStack) -> dict[str, Worker]:
    """The contenders asked for, as far as they are installed and load; says why others do not.

    Args:
        stack: ends them.
    """
    setup = Setup(options.folder.resolve())
    workers = {}
    for name in options.contenders:
        contender = CONTENDERS[name]
        missing = [e for e in contender.environments if not setup.python(e).exists()]
        if missing:
            install = f"python benchmarks/contenders_setup.py {' '.join(missing)}"
            print(f"{contender.name}: not installed. {install} --folder {options.folder}")
            continue
        try:
            settings = {
                "model": str(setup.model(contender.model, options.model, options.dtype)),
                "dtype": options.dtype,
                "threads": options.threads,
                "max_len": MAX_LEN,
                "max_seqs": MAX_SEQS,
                "variant": contender.variant,
            }
            env = contender.environment
            python = setup.python(env) if env else Path(sys.executable)
            log = setup.folder / f"{name}.log"
            workers[name] = Worker(contender, python, settings, log)
            stack.callback(workers[name].close)
        except (WorkerError, SetupError) as error:
            print(f"{contender.name}: skipped. {error}")
    return workers


def compare(workers: Mapping[str, Worker], options: argparse.Namespace) -> None:
    """Print the table."""
    clock = "cpu_seconds" if options.clock == "cpu" else "seconds"
    others: list[float] = []
    print(f"\n{HEAD}")
    for workload in options.workloads:
        taking = [w for name, w in workers.items() if workload in CONTENDERS[name].workloads]
        if not taking:
            continue
        batch = WORKLOADS[workload]
        runs: dict[str, Runs] = take_turns(taking, batch, options.rounds, options.warm_ups, clock)
        reference = taking[-1].name
        print("\n".join(rows(workload, batch, runs, reference)), flush=True)
        others += [share for found in runs.values() for share in found.others]
    print(
        f"\nTokens are compared with those of the last engine of a workload. While one ran, other "
        f"programs took up to {max(others, default=0):.2f} of {os.cpu_count()} cores."
    )


def machine(workers: Mapping[str, Worker], options: argparse.Namespace) -> str:
    """Under what conditions the table was made."""
    pairs = [pair for worker in workers.values() for pair in worker.versions.items()]
    told = ", ".join(f"{name} {number}" for name, number in dict.fromkeys(pairs))
    return (
        f"{options.model.name}, {options.dtype}, {options.threads} threads of {os.cpu_count()} "
        f"cores, Linux {platform.release()}, Python {platform.python_version()}; {told}; "
        f"{options.rounds} rounds, {options.clock} time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-ups", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of engines and models")
    options = parser.parse_args()
    with ExitStack() as stack:
        if workers := start(options, stack):
            print(machine(workers, options))
            compare(workers, options)


if __name__ == "__main__":
    main()
