"""Contenders that take turns at one batch, and the table of what they took."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Batch:
    """Requests that run together."""

    prompts: list[list[int]]
    counts: list[int]  # tokens to generate for each
    counts_prompts: bool = False  # tokens/s are those of the prompts, else of the outputs

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts)) if self.counts_prompts else sum(self.counts)


class Generates(Protocol):
    """A contender: `contenders.Worker`."""

    name: str

    def generate(self, prompts: list[list[int]], counts: list[int]) -> dict[str, Any]: ...


@dataclass
class Runs:
    """What one contender did in all rounds."""

    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)  # share of the cores that others took
    tokens: list[list[int]] = field(default_factory=list)  # the outputs of its first run


def take_turns(
    contenders: Sequence[Generates], batch: Batch, rounds: int, warm_ups: int, clock: str
) -> dict[str, Runs]:
    """Let each contender run the batch once a round.

    Who begins changes from round to round, so that nobody always runs after the same other.

    Args:
        warm_ups: rounds that come before and do not count.
        clock: `seconds` or `cpu_seconds`, which of a worker's times is taken.
    """
    runs = {contender.name: Runs() for contender in contenders}
    for number in range(-warm_ups, rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            found = runs[contender.name]
            busy = _busy()
            answer = contender.generate(batch.prompts, batch.counts)
            others = _busy() - busy - answer["cpu_seconds"]
            found.tokens = found.tokens or answer["tokens"]
            if number >= 0:
                found.seconds.append(answer[clock])
                found.others.append(max(0.0, others / answer["seconds"]))
    return runs


def rows(workload: str, batch: Batch, runs: dict[str, Runs], reference: str) -> list[str]:
    """Lines of a Markdown table; ratios are those of the first contender to each, by rounds.

    Args:
        reference: the contender with whose tokens all are compared.
    """
    own = next(iter(runs.values())).seconds
    expected = runs[reference].tokens
    lines = []
    for name, found in runs.items():
        rates = [batch.num_tokens / seconds for seconds in found.seconds]
        ratios = [theirs / ours for ours, theirs in zip(own, found.seconds, strict=True)]
        lines.append(
            f"| {workload} | {name} | {_spread(rates, 1)} | {_spread(ratios, 2)} "
            f"| {agreement(found.tokens, expected):.0%} |"
        )
    return lines


HEAD = (
    "| workload | engine | tokens/s (least to most) | first engine against it | same tokens |\n"
    "|---|---|---|---|---|"
)


def agreement(outputs: list[list[int]], expected: list[list[int]]) -> float:
    """Which share of the tokens comes before the first that differs, over all outputs."""
    same = 0
    for output, other in zip(outputs, expected, strict=True):
        pairs = enumerate(zip(output, other, strict=True))
        same += next((i for i, (a, b) in pairs if a != b), len(output))
    return same / sum(map(len, expected))


def _spread(values: list[float], digits: int) -> str:
    least, most = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def _busy() -> float:
    """Seconds for which the cores have been at work so far; 0 where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
