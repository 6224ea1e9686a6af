"""What one step runs: which tokens of which sequences, and which of them sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from assembler.engine.sequence import Sequence

# Logits of prompts that a step makes, where prompts may be cut: those of all the tokens of a step
# over a large vocabulary are gigabytes.
MAX_SCORED_TOKENS = 256


class ScheduledSequence(NamedTuple):
    """The tokens `token_ids[start : start + num_new_tokens]` of a sequence, to run in this step."""

    sequence: Sequence
    start: int
    num_new_tokens: int
    samples: bool  # these are its last tokens: a new one is sampled after them

    @property
    def num_prompt_logits(self) -> int:
        """How many of these stand in the prompt before a token whose logit is wanted."""
        if not self.sequence.needs_prompt_logits:
            return 0
        followed = self.sequence.num_prompt_tokens - 1 - self.start
        return max(0, min(followed, self.num_new_tokens))

    @property
    def is_decode(self) -> bool:
        """Whether it is one token, that was generated before."""
        return self.num_new_tokens == 1 and self.start >= self.sequence.num_prompt_tokens


@dataclass(frozen=True)
class ScheduledBatch:
    """What one step runs, in the order of the model's rows."""

    items: list[ScheduledSequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(item.num_new_tokens for item in self.items)

    @cached_property
    def sampling_sequences(self) -> list[Sequence]:
        """The sequences that get a new token, in order."""
        return [item.sequence for item in self.items if item.samples]


def room_for(
    sequence: Sequence, items: Iterable[ScheduledSequence], budget: int, may_cut: bool
) -> int:
    """How many tokens of `sequence` fit a step that has room for `budget` more.

    `items` are in the step already. Prompts that may be cut make no more than `MAX_SCORED_TOKENS`
    logits together.
    """
    if not (may_cut and sequence.needs_prompt_logits):
        return budget
    scored = sum(item.num_prompt_logits for item in items)
    return min(budget, MAX_SCORED_TOKENS - scored)


def most_logit_rows(max_num_seqs: int, max_num_batched_tokens: int, may_cut: bool) -> int:
    """The rows of logits that a step may have: those that sample, and those of scored prompts."""
    rows = max_num_seqs + (MAX_SCORED_TOKENS if may_cut else max_num_batched_tokens)
    return min(rows, max_num_batched_tokens)
