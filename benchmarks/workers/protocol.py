"""How a worker talks to `contenders.py`: a JSON object a line, asked on stdin, answered on stdout.

The first question is the `Settings`; the answer tells the versions. Every further one is a batch,
`{"prompts": [[ids]], "counts": [tokens to generate]}`; the answer is `{"tokens": [[ids]],
"seconds": wall time, "cpu_seconds": processor time}`. An exception is answered by `{"error": ...}`.

Only the standard library is imported: workers run in environments that hold one engine each.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

# The token ids generated for each prompt: exactly so many, greedily, whatever they mean.
Generate = Callable[[list[list[int]], list[int]], list[list[int]]]


@dataclass(frozen=True)
class Settings:
    """What to load and how to run it."""

    model: str  # folder or file, in the form that the engine reads
    dtype: str  # "bfloat16" or "float32", of weights, arithmetic and cache
    threads: int
    max_len: int  # tokens of the longest sequence
    max_seqs: int  # sequences that may run at once
    variant: str = ""  # a way of running the same engine
    cache_tokens: int = 1 << 15  # room for keys and values


def serve(load: Callable[[Settings], Generate], packages: tuple[str, ...]) -> None:
    """Answer until stdin ends. `packages` are those whose versions are told."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an engine prints is no answer

    def answer(**values: object) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    generate: Generate | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if generate is None:
                generate = load(Settings(**question))
                answer(versions={name: version(name) for name in packages})
            else:
                answer(**_timed(generate, **question))
        except Exception as error:
            traceback.print_exc()
            answer(error=f"{type(error).__name__}: {error}")


def _timed(generate: Generate, prompts: list[list[int]], counts: list[int]) -> dict[str, object]:
    start, cpu_start = time.perf_counter(), time.process_time()
    tokens = generate(prompts, counts)
    cpu_seconds = time.process_time() - cpu_start
    seconds = time.perf_counter() - start
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}
