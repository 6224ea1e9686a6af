"""What one step runs: which tokens of which sequences, and which of them sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from assembler.engine.sequence import Sequence


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

    @property
    def sampling_sequences(self) -> list[Sequence]:
        """The sequences that get a new token, in order."""
        return [item.sequence for item in self.items if item.samples]
