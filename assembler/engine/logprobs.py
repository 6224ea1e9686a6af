"""Log-probabilities of tokens, as the model gave them: before penalties, biases and temperature.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch

from assembler.engine import blockwise
from assembler.engine.options import ALL_TOKENS
from assembler.engine.outputs import Logprob

# Rows at a time: the log-probabilities of a long prompt over a large vocabulary are gigabytes.
_CHUNK = 64


class TokenLogprobs(NamedTuple):
    """The log-probabilities reported for one token; the first is the token's own.

    The others are those of the likeliest tokens, from the likeliest on; the token may be among
    them again.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of the first one; 1: no token is likelier

    def described(self, token_text: Callable[[int], str] | None) -> dict[int, Logprob]:
        """By token id, the token's own first; `token_text` says what a token stands for."""
        ranks = [self.rank, *range(1, len(self.token_ids))]
        found: dict[int, Logprob] = {}
        for token_id, logprob, rank in zip(self.token_ids, self.logprobs, ranks, strict=True):
            if token_id not in found:
                text = None if token_text is None else token_text(token_id)
                found[token_id] = Logprob(logprob, rank, text)
        return found


def token_logprobs(
    logits: torch.Tensor, token_ids: SequenceOf[int], counts: SequenceOf[int]
) -> list[TokenLogprobs]:
    """The log-probability of one token a row, and of the likeliest ones.

    Args:
        logits: [R, V] as the model gave them.
        token_ids: [R] the token to report on.
        counts: [R] how many of the likeliest to report; `ALL_TOKENS`: the whole vocabulary.
    """
    found: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _CHUNK):
        rows = slice(start, start + _CHUNK)
        found += _chunk(logits[rows], token_ids[rows], counts[rows])
    return found


def _chunk(
    logits: torch.Tensor, token_ids: SequenceOf[int], counts: SequenceOf[int]
) -> list[TokenLogprobs]:
    vocab_size = logits.shape[-1]
    counts = [vocab_size if n == ALL_TOKENS else min(n, vocab_size) for n in counts]
    logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
    chosen = torch.tensor(token_ids, device=logits.device).unsqueeze(1)
    own = logprobs.gather(-1, chosen)
    ranks = (logprobs > own).sum(dim=-1) + 1
    values, indices = blockwise.top_k(logprobs, max(counts))
    rows = zip(
        token_ids,
        own.squeeze(1).tolist(),
        ranks.tolist(),
        indices.tolist(),
        values.tolist(),
        counts,
        strict=True,
    )
    return [
        TokenLogprobs([token_id, *ids[:count]], [logprob, *values[:count]], rank)
        for token_id, logprob, rank, ids, values, count in rows
    ]
