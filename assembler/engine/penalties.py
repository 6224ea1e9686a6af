"""Presence, frequency and repetition penalties: tokens seen before weigh less.

Presence and frequency look at the output, as in OpenAI's API; repetition (CTRL, Keskar et al.,
2019) at the prompt and the output. Only logits of seen tokens change, so only they are touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np
import torch

from assembler.engine.sampling_params import SamplingParams


class TokenCounts:
    """The different tokens of a sequence and how often each was generated; grows with it."""

    def __init__(self, prompt_token_ids: Iterable[int] = ()) -> None:
        """Counts of no output. `prompt_token_ids` are seen, but not counted."""
        self._places = {token_id: i for i, token_id in enumerate(dict.fromkeys(prompt_token_ids))}
        size = len(self._places)
        self._token_ids = np.zeros(max(64, 2 * size), dtype=np.int64)
        self._token_ids[:size] = list(self._places)
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)
        self._num_counted = 0

    @property
    def token_ids(self) -> np.ndarray:
        """[N] each token once."""
        return self._token_ids[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        """[N] how often each of `token_ids` was generated."""
        return self._counts[: len(self._places)]

    def catch_up(self, token_ids: SequenceOf[int], num_prompt_tokens: int) -> None:
        """Count the tokens that were generated since the last call."""
        for token_id in token_ids[num_prompt_tokens + self._num_counted :]:
            place = self._places.setdefault(token_id, len(self._places))
            if place == len(self._token_ids):
                self._token_ids = np.concatenate([self._token_ids, np.zeros_like(self._token_ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._token_ids[place] = token_id
            self._counts[place] += 1
        self._num_counted = len(token_ids) - num_prompt_tokens


class PenalisedRow(NamedTuple):
    """A row of the logits and what is to be penalised in it."""

    row: int
    params: SamplingParams
    seen: TokenCounts


def apply_penalties(logits: torch.Tensor, penalised: SequenceOf[PenalisedRow]) -> None:
    """Change `logits` [R, V] in place: repetition first, then frequency and presence."""
    sizes = [len(item.seen.token_ids) for item in penalised]

    def spread(values: list[float], dtype: type) -> torch.Tensor:
        """The value of each row for all of the row's tokens."""
        array = np.repeat(np.array(values, dtype=dtype), sizes)
        return torch.from_numpy(array).to(logits.device)

    rows = spread([item.row for item in penalised], np.int64)
    repetition = spread([item.params.repetition_penalty for item in penalised], np.float32)
    frequency = spread([item.params.frequency_penalty for item in penalised], np.float32)
    presence = spread([item.params.presence_penalty for item in penalised], np.float32)
    columns = np.concatenate([item.seen.token_ids for item in penalised])
    counts = np.concatenate([item.seen.counts for item in penalised])
    columns, counts = (torch.from_numpy(array).to(logits.device) for array in (columns, counts))
    values = logits[rows, columns]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * counts + presence * (counts > 0)
    logits[rows, columns] = values
