"""`python -m assembler.bench checkpoint=...`: how fast a model runs here; random weights will do.

Three workloads, each measured several times after a warm-up: the latency of decoding one sequence,
the prefill of one prompt, and the throughput of many requests at once.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from assembler.command_line import Arguments, describe_options, parse_arguments, run_command
from assembler.engine.options import Options
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import OptionError
from assembler.llm_options import LLMOptions

if TYPE_CHECKING:
    from assembler.llm import LLM

USAGE = """\
usage: python -m assembler.bench checkpoint=WHERE [conf=NAME] [key=value ...]

  python -m assembler.bench conf=smollm2 dtype=bfloat16
  python -m assembler.bench checkpoint=path/to/config.json load=dummy conf.layers.count=4
"""
# Said on the command line in its own way: conf.x=y, hydra.searchpath=[...], tp=N.
_SAID_OTHERWISE = ("overrides", "search_path", "tensor_parallel_size", "enable_prefix_caching")


class BenchOptions(Options):
    """What to measure."""

    checkpoint: str | None = Field(
        None, description="folder, .gguf file, Hub id, or config.json with load=dummy"
    )
    rounds: int = Field(5, ge=1, description="measurements of each workload; medians are printed")
    requests: int = Field(32, ge=1, description="of the throughput workload")
    input_len: int = Field(256, ge=1, description="longest prompt of the throughput workload")
    output_len: int = Field(128, ge=1, description="longest output of the throughput workload")
    decode_len: int = Field(64, ge=2, description="tokens decoded to measure the latency")
    prefill_len: int = Field(512, ge=1, description="tokens of the prompt that is prefilled")
    tp: int = Field(1, ge=1, description="tensor-parallel ranks")
    format: Literal["table", "json"] = Field("table", description="table or json")


@dataclass(frozen=True)
class Workload:
    """Requests that run together, and what counts of them."""

    name: str
    shapes: list[tuple[int, int]]  # (input, output) tokens of each request
    counts_prompts: bool = False  # tokens of prompts, else of outputs

    @property
    def num_tokens(self) -> int:
        return sum(shape[0 if self.counts_prompts else 1] for shape in self.shapes)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    if any(argument in ("-h", "--help", "help") for argument in argv):
        print(
            f"{USAGE}\nWhat to measure:\n{describe_options(BenchOptions)}\n"
            f"\nModel and engine:\n{describe_options(LLMOptions, leave_out=_SAID_OTHERWISE)}"
        )
        return 0
    arguments = parse_arguments(argv, BenchOptions, LLMOptions)
    options = BenchOptions(**arguments.values[0])
    llm = _load(options, arguments)
    found = [w for w in workloads(options) if _fits(w, llm)]
    if not found:
        raise OptionError(f"max_model_len={llm.engine.max_model_len} is too short for any workload")
    as_json = options.format == "json"
    measured = {}
    if not as_json:
        print(f"{'workload':<28} {'tokens/s':>10} {'median':>10} {'fastest':>10}")
    for workload in found:
        _run(llm, workload)
        seconds = sorted(_run(llm, workload) for _ in range(options.rounds))
        median = statistics.median(seconds)
        rate = workload.num_tokens / median
        measured[workload.name] = {
            "tokens_per_s": rate,
            "median_s": median,
            "fastest_s": seconds[0],
        }
        if not as_json:
            row = f"{workload.name:<28} {rate:>10.1f} {median:>9.3f}s {seconds[0]:>9.3f}s"
            print(row, flush=True)
    if as_json:
        print(json.dumps(measured, indent=2))
    return 0


def workloads(options: BenchOptions) -> list[Workload]:
    """What is measured, with lengths from an eighth to all of those asked for."""
    draw = random.Random(0)
    longest = (options.input_len, options.output_len)
    many = [
        tuple(draw.randint(-(-length // 8), length) for length in longest)
        for _ in range(options.requests)
    ]
    return [
        Workload(f"decode {options.decode_len}, 1 request", [(16, options.decode_len)]),
        Workload(f"prefill {options.prefill_len}", [(options.prefill_len, 1)], True),
        Workload(f"throughput, {options.requests} requests", many),
    ]


def _load(options: BenchOptions, arguments: Arguments) -> LLM:
    from assembler.llm import LLM

    values = {"tensor_parallel_size": options.tp, **arguments.values[1]}
    values |= {"overrides": arguments.overrides, "search_path": arguments.search_path}
    # The same prompts come again in every round.
    return LLM(options.checkpoint, **{**values, "enable_prefix_caching": False})


def _fits(workload: Workload, llm: LLM) -> bool:
    """Whether the model is long enough; says on stderr if it is not."""
    longest = max(sum(shape) for shape in workload.shapes)
    if longest <= llm.engine.max_model_len:
        return True
    print(f"{workload.name}: skipped, {longest} tokens are too many", file=sys.stderr)
    return False


def _run(llm: LLM, workload: Workload) -> float:
    """Seconds of one round: greedy, whatever the text says."""
    draw = random.Random(1)
    size = llm.spec.vocab_size
    prompts = [[draw.randrange(size) for _ in range(length)] for length, _ in workload.shapes]
    params = [
        SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        for _, count in workload.shapes
    ]
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_command(main)
