"""What a request adds to logits, and which tokens it does not allow.

`logit_bias`, `bad_words`, `min_tokens` (no end before so many tokens) and `allowed_token_ids`. All
of a step's rows are changed at once, and only in the columns that the rules name.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np
import torch

from assembler.engine.sampling_params import SamplingParams


class LogitRules:
    """The rules of one sequence."""

    def __init__(
        self,
        params: SamplingParams,
        end_token_ids: Collection[int] = (),
        bad_words: SequenceOf[SequenceOf[int]] = (),
    ) -> None:
        """Rules as `params` has them.

        Args:
            end_token_ids: tokens that end the sequence; not before `params.min_tokens`.
            bad_words: the token ids of each word that must not be completed.
        """
        bias = params.logit_bias or {}
        self.biased = np.array(list(bias), dtype=np.int64)
        self.bias = np.array(list(bias.values()), dtype=np.float32)
        allowed = params.allowed_token_ids
        self.allowed = None if allowed is None else np.unique(np.array(allowed, dtype=np.int64))
        self._min_tokens = params.min_tokens
        self._ends = sorted(end_token_ids)
        self._never = [word[0] for word in bad_words if len(word) == 1]
        # By the token before the last one, which most tokens are not.
        self._words: dict[int, list[tuple[list[int], int]]] = {}
        for *beginning, last in (word for word in bad_words if len(word) > 1):
            self._words.setdefault(beginning[-1], []).append((beginning, last))

    @property
    def is_empty(self) -> bool:
        """Whether no token is ever treated otherwise than without rules."""
        bans = self._never or self._words or (self._min_tokens and self._ends)
        return not bans and self.allowed is None and len(self.biased) == 0

    def banned(self, token_ids: SequenceOf[int], num_prompt_tokens: int) -> list[int]:
        """Tokens that must not follow `token_ids` (of prompt and output)."""
        num_generated = len(token_ids) - num_prompt_tokens
        banned = list(self._never)
        if num_generated < self._min_tokens:
            banned += self._ends
        if num_generated:
            for beginning, last in self._words.get(token_ids[-1], ()):
                count = len(beginning)
                if count <= num_generated and list(token_ids[-count:]) == beginning:
                    banned.append(last)
        return banned


class RuledRow(NamedTuple):
    """A row of the logits, its rules, and the tokens that they ban in this step."""

    row: int
    rules: LogitRules
    banned: SequenceOf[int]


def apply_bias(logits: torch.Tensor, ruled: SequenceOf[RuledRow]) -> None:
    """Add the biases to `logits` [R, V] in place."""
    biased = [item for item in ruled if len(item.rules.biased)]
    if biased:
        rows, columns = _places(logits, [(item.row, item.rules.biased) for item in biased])
        bias = np.concatenate([item.rules.bias for item in biased])
        logits[rows, columns] += torch.from_numpy(bias).to(logits.device)


def apply_bans(logits: torch.Tensor, ruled: SequenceOf[RuledRow]) -> None:
    """Set what may not be drawn to -inf in `logits` [R, V], in place."""
    restricted = [item for item in ruled if item.rules.allowed is not None]
    if restricted:
        rows, columns = _places(logits, [(item.row, item.rules.allowed) for item in restricted])
        kept = logits[rows, columns]
        whole = torch.tensor([item.row for item in restricted], device=logits.device)
        logits[whole] = -math.inf
        logits[rows, columns] = kept
    banning = [(item.row, np.array(item.banned, dtype=np.int64)) for item in ruled if item.banned]
    if banning:
        logits[_places(logits, banning)] = -math.inf


def _places(
    logits: torch.Tensor, columns: SequenceOf[tuple[int, np.ndarray]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, columns) pairs as an index of `logits`."""
    rows = np.repeat([row for row, _ in columns], [len(ids) for _, ids in columns])
    together = np.concatenate([ids for _, ids in columns])
    return (
        torch.from_numpy(rows.astype(np.int64, copy=False)).to(logits.device),
        torch.from_numpy(together).to(logits.device),
    )
