"""How much of a decode step is not products and attention: of one sequence, on a CPU.

    python benchmarks/overhead.py path/to/model [--dtype bfloat16] [--steps 200] [--threads 2]

In every step three times are taken: of a program that holds the linear layers and the attention
alone, of the whole program, and of the step, from the call of the engine to its return. What the
first program computes is overwritten by the second; its time is what nobody can leave out.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from assembler import LLM, SamplingParams
from assembler.engine import cpu_step
from assembler.kernels.cpu_program import Instruction, Opcode, Step, run

NEEDED = (Opcode.LINEAR, Opcode.ATTEND)
PROMPT = 16
WARM_UP = 8  # steps that do not count: the prefill and the first decodes


@dataclass
class Kernels:
    """Takes the place of the call that runs a program, and measures it; seconds so far."""

    needed: float = 0.0  # of products and attention alone
    program: float = 0.0  # of the whole program
    extra: float = 0.0  # of measuring: the first program and what it takes to make it

    def run(self, step: Step, dtype: torch.dtype) -> None:
        start = time.perf_counter()
        program, length = step.program, step.length
        every = (Instruction * length).from_address(program)
        chosen = [instruction for instruction in every if instruction.opcode in NEEDED]
        fewer = (Instruction * len(chosen))(*chosen)
        step.program, step.length = ctypes.addressof(fewer), len(chosen)
        self.needed += _seconds(step, dtype)
        step.program, step.length = program, length
        self.extra += time.perf_counter() - start
        self.program += _seconds(step, dtype)


def _seconds(step: Step, dtype: torch.dtype) -> float:
    start = time.perf_counter()
    run(step, dtype)
    return time.perf_counter() - start


def measure(llm: LLM, steps: int) -> tuple[float, float, float]:
    """Median seconds of a decode step: (the step, the whole program, products and attention).

    Raises:
        ValueError: the model's steps run in torch.
    """
    kernels = Kernels()
    call, cpu_step.run = cpu_step.run, kernels.run
    params = SamplingParams(temperature=0, max_tokens=steps + WARM_UP, ignore_eos=True)
    llm.add_request(list(range(1, PROMPT + 1)), params)
    found = []
    try:
        while not llm.is_finished():
            before = replace(kernels)
            start = time.perf_counter()
            llm.step()
            seconds = time.perf_counter() - start - (kernels.extra - before.extra)
            program, needed = kernels.program - before.program, kernels.needed - before.needed
            found.append((seconds, program, needed))
    finally:
        cpu_step.run = call
    if not kernels.program:
        raise ValueError("the steps of this model run in torch: there is no program to measure")
    return tuple(statistics.median(times) for times in zip(*found[WARM_UP:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a checkpoint")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    llm = LLM(options.model, dtype=options.dtype, max_model_len=options.steps + WARM_UP + PROMPT)
    step, program, needed = measure(llm, options.steps)
    print(
        f"{options.dtype}, {options.threads} threads, medians of {options.steps} decode steps: "
        f"{step * 1e3:.2f} ms, of which products and attention {needed * 1e3:.2f}, "
        f"norms and the like {(program - needed) * 1e3:.2f}, Python {(step - program) * 1e3:.2f}; "
        f"overhead {1 - needed / step:.1%}"
    )


if __name__ == "__main__":
    main()
