"""The workloads, and what is measured of them: rates, and when tokens come."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from assembler.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from assembler.llm import LLM

DECODE_PROMPT = 16  # tokens before those whose decoding is measured


@dataclass(frozen=True)
class Workload:
    """Requests that come at once, and which of their tokens count over which time."""

    name: str
    shapes: tuple[tuple[int, int], ...]  # (input, output) tokens of each request
    # outputs: all output tokens, from the arrival to the end. prompts: all input tokens, to the
    # first output. decodes: the output tokens after the first, from there to the end.
    counts: Literal["outputs", "prompts", "decodes"] = "outputs"

    @property
    def num_tokens(self) -> int:
        """Those that count."""
        if self.counts == "prompts":
            return sum(length for length, _ in self.shapes)
        return sum(length - (self.counts == "decodes") for _, length in self.shapes)


@dataclass(frozen=True)
class Spread:
    """Of several times, in seconds."""

    median: float
    p99: float  # no more than one in a hundred is longer

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread | None:
        """None: there are none."""
        if not times:
            return None
        return cls(statistics.median(times), sorted(times)[math.ceil(0.99 * len(times)) - 1])

    def to_json(self) -> dict[str, float]:
        return {"median_ms": self.median * 1e3, "p99_ms": self.p99 * 1e3}


@dataclass(frozen=True)
class Measured:
    """What the rounds of a workload took, in seconds."""

    name: str
    tokens_per_s: float
    median: float
    fastest: float
    first_token: Spread  # of a request, since all of them arrived
    between_tokens: Spread | None  # of one request; None: there is one token of each

    def to_json(self) -> dict[str, Any]:
        """By the names that `format=json` has."""
        between = self.between_tokens
        return {
            "tokens_per_s": self.tokens_per_s,
            "median_s": self.median,
            "fastest_s": self.fastest,
            "first_token": self.first_token.to_json(),
            "between_tokens": None if between is None else between.to_json(),
        }


def decode(length: int) -> Workload:
    """One request: how fast tokens follow each other."""
    return Workload(f"decode {length}, 1 request", ((DECODE_PROMPT, length),), "decodes")


def prefill(length: int) -> Workload:
    """One prompt, up to its first token."""
    return Workload(f"prefill {length}", ((length, 1),), "prompts")


def throughput(requests: int, input_len: int, output_len: int) -> Workload:
    """Many requests, whose lengths are from an eighth to all of those asked for."""
    draw = random.Random(0)
    shapes = [
        tuple(draw.randint(-(-length // 8), length) for length in (input_len, output_len))
        for _ in range(requests)
    ]
    return Workload(f"throughput, {requests} requests", tuple(shapes))


def measure(llm: LLM, workload: Workload, rounds: int) -> Measured:
    """Run `workload` once to warm up, then `rounds` times.

    Rates of outputs are those of `generate`, which looks at texts when they are complete; when
    their tokens come is then seen in one more round, token by token.
    """
    _generate(llm, workload)
    offline = workload.counts == "outputs"
    arrivals = [_arrivals(llm, workload) for _ in range(1 if offline else rounds)]
    if offline:
        seconds = [_generate(llm, workload) for _ in range(rounds)]
    else:
        seconds = [_counted(times[0], workload) for times in arrivals]
    requests = [times for round_ in arrivals for times in round_]
    gaps = [b - a for times in requests for a, b in pairwise(times)]
    median = statistics.median(seconds)
    return Measured(
        name=workload.name,
        tokens_per_s=workload.num_tokens / median,
        median=median,
        fastest=min(seconds),
        first_token=Spread.of([times[0] for times in requests]),
        between_tokens=Spread.of(gaps),
    )


def _counted(times: Sequence[float], workload: Workload) -> float:
    """The seconds over which the tokens of a single request count."""
    return times[0] if workload.counts == "prompts" else times[-1] - times[0]


def _generate(llm: LLM, workload: Workload) -> float:
    """Seconds of one round, all requests at once."""
    prompts, params = _requests(llm, workload)
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def _arrivals(llm: LLM, workload: Workload) -> list[list[float]]:
    """When each token of each request came, in seconds since all of them were sent."""
    prompts, params = _requests(llm, workload)
    start = time.perf_counter()
    arrivals: dict[str, list[float]] = {
        llm.add_request(prompt, own): [] for prompt, own in zip(prompts, params, strict=True)
    }
    while not llm.is_finished():
        outputs = llm.step()
        now = time.perf_counter() - start
        for output in outputs:
            arrivals[output.request_id].append(now)
    return list(arrivals.values())


def _requests(llm: LLM, workload: Workload) -> tuple[list[list[int]], list[SamplingParams]]:
    """Random prompts, decoded greedily to their full lengths, whatever the text says."""
    draw = random.Random(1)
    size = llm.spec.vocab_size
    prompts = [[draw.randrange(size) for _ in range(length)] for length, _ in workload.shapes]
    params = [
        SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        for _, count in workload.shapes
    ]
    return prompts, params
