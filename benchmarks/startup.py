"""From process start to first token, against transformers: files warm, whole processes.

    python benchmarks/startup.py path/to/model [--dtype bfloat16] [--rounds 7] [--threads 2]

`model` is a folder as the Hub has it, with a chat template. The two take turns; both read the
prompt through the template and generate one token, and must agree on it. Medians are printed, and
the median ratio of the rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROMPT = "What is the capital of France?"
ROOT = Path(__file__).parents[1]
TRANSFORMERS = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, dtype, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": prompt}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True,
)
outputs = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1]:]))
"""


@dataclass(frozen=True)
class Start:
    """One process, from its start to its end."""

    seconds: float
    cpu_seconds: float
    text: str


def commands(model: Path, dtype: str) -> Mapping[str, list[str]]:
    """What is run, by name."""
    folder = str(model.resolve())
    options = [f"checkpoint={folder}", f"dtype={dtype}", f"prompt={PROMPT}", "max_tokens=1"]
    return {
        "assembler": [sys.executable, "-m", "assembler.generate", *options],
        "transformers": [sys.executable, "-c", TRANSFORMERS, folder, dtype, PROMPT],
        "import torch": [sys.executable, "-c", "import torch"],
    }


def run(command: list[str], threads: int) -> Start:
    """Run a process to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Start(seconds, cpu_seconds, done.stdout.strip())


def take_turns(found: Mapping[str, list[str]], rounds: int, threads: int) -> dict[str, list[Start]]:
    """Every command once a round; a first round warms the files and does not count.

    Raises:
        ValueError: the texts differ.
    """
    starts: dict[str, list[Start]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, command in found.items():
            starts[name].append(run(command, threads))
    texts = {name: every[0].text for name, every in starts.items() if every[0].text}
    if len(set(texts.values())) > 1:
        raise ValueError(f"the first tokens differ: {texts}")
    return {name: every[1:] for name, every in starts.items()}


def rows(starts: Mapping[str, list[Start]]) -> list[str]:
    """Lines of a Markdown table; ratios to transformers, by rounds."""
    head = "| process | s (least to most) | processor s | of transformers' time |"
    lines = [head, "|---|---|---|---|"]
    for name, every in starts.items():
        pairs = list(zip(every, starts["transformers"], strict=True))
        ratios = [mine.seconds / theirs.seconds for mine, theirs in pairs]
        cpu = statistics.median(start.cpu_seconds for start in every)
        seconds = _spread([start.seconds for start in every])
        lines.append(f"| {name} | {seconds} | {cpu:.2f} | {_spread(ratios)} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder as the Hub has it")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    found = commands(options.model, options.dtype)
    starts = take_turns(found, options.rounds, options.threads)
    load = os.getloadavg()[0]
    print(f"{options.dtype}, {options.threads} threads, {options.rounds} rounds, load {load:.1f}\n")
    print("\n".join(rows(starts)))


if __name__ == "__main__":
    main()
