"""Generation against the engines a user would pick instead, one after the other in one run.

    python benchmarks/engine.py MODEL.gguf [--dtype bfloat16] [--rounds 5] [--threads 2]
        [--clock cpu]

The contenders take turns within every round, so that a machine whose speed drifts is unfair to
none of them; medians and ratios are printed. With `--threads 1 --clock cpu` the processor time of
the process is counted, which other programs on the machine change least.

Workloads: decoding one sequence; the prefill of 512 tokens; and W, 32 requests at once with
inputs of 32 to 256 and outputs of 32 to 128 tokens, greedy.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DECODED = 64  # tokens of the bs=1 workload
PROMPT = 16
PREFILLED = 512
OTHERS = {"vllm": "vLLM", "llama_cpp": "llama.cpp", "openvino_genai": "OpenVINO GenAI"}


@dataclass(frozen=True)
class Request:
    """Token ids to continue, and by how many."""

    prompt: list[int]
    count: int


def requests(seed: int, shapes: list[tuple[int, int]], vocab_size: int = 40_000) -> list[Request]:
    """Random requests of these (input, output) lengths."""
    draw = random.Random(seed)
    return [Request([draw.randrange(1000, vocab_size) for _ in range(n)], m) for n, m in shapes]


def mixed_shapes(count: int = 32) -> list[tuple[int, int]]:
    """The lengths of workload W."""
    draw = random.Random(0)
    return [(draw.randint(32, 256), draw.randint(32, 128)) for _ in range(count)]


WORKLOADS: Mapping[str, list[tuple[int, int]]] = {
    "decode": [(PROMPT, DECODED)],
    "prefill": [(PREFILLED, 1)],
    "W": mixed_shapes(),
}
Contender = Callable[[list[Request]], None]


def ours(model: Path, dtype: str, eager: bool) -> Contender:
    """This engine, with the compiled kernels or without."""
    from assembler import LLM, SamplingParams

    llm = LLM(model, dtype=dtype, enforce_eager=eager, enable_prefix_caching=False)

    def generate(batch: list[Request]) -> None:
        params = [
            SamplingParams(temperature=0, max_tokens=request.count, ignore_eos=True)
            for request in batch
        ]
        llm.generate([request.prompt for request in batch], params, use_tqdm=False)

    return generate


def transformers_generate(model: Path, dtype: str) -> Contender:
    """transformers' `generate`; a batch is padded on the left and runs until its last is done."""
    import torch
    import transformers

    # Weights as they would be in safetensors: those of a GGUF file it would leave quantised. Their
    # values do not matter to the time.
    config = transformers.AutoConfig.from_pretrained(str(model.parent), gguf_file=model.name)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    made.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(batch: list[Request]) -> None:
        width = max(len(request.prompt) for request in batch)
        pads = [width - len(request.prompt) for request in batch]
        ids = torch.tensor([[0] * n + r.prompt for n, r in zip(pads, batch, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in pads])
        count = max(request.count for request in batch)
        made.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    return generate


def measure(
    contenders: Mapping[str, Contender], batch: list[Request], rounds: int, clock: Callable
) -> dict[str, list[float]]:
    """Seconds of every round, by contender; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, generate in contenders.items():
            start = clock()
            generate(batch)
            if number:
                seconds[name].append(clock() - start)
    return seconds


def show(workload: str, batch: list[Request], seconds: Mapping[str, list[float]]) -> None:
    """Tokens a second (of prompts, in prefills), and the ratio to the last contender."""
    prefill = workload == "prefill"
    tokens = sum(len(r.prompt) if prefill else r.count for r in batch)
    base = list(seconds.values())[-1]
    for name, found in seconds.items():
        ratios = [theirs / own for own, theirs in zip(found, base, strict=True)]
        print(
            f"| {workload} | {name} | {tokens / statistics.median(found):.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--eager", action="store_true", help="this engine without kernels too")
    options = parser.parse_args()

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    contenders = {"assembler": ours(options.model, options.dtype, False)}
    if options.eager:
        contenders["assembler, enforce_eager"] = ours(options.model, options.dtype, True)
    contenders["transformers"] = transformers_generate(options.model, options.dtype)
    for package, name in OTHERS.items():
        if find_spec(package) is None:
            print(f"{name} is not installed: skipped")
    threads = torch.get_num_threads()
    print(f"{options.dtype}, {threads} threads, {options.rounds} rounds, {options.clock} time")
    print("| workload | engine | tokens/s | against transformers |\n|---|---|---|---|", flush=True)
    for number, workload in enumerate(options.workloads):
        batch = requests(number, WORKLOADS[workload])
        show(workload, batch, measure(contenders, batch, options.rounds, clock))


if __name__ == "__main__":
    main()
