"""Which tokens may be drawn and how likely: temperature, min-p, top-k and top-p.

The order is vLLM's: temperature, then min-p (Nguyen et al., 2024), top-k (Fan et al., 2018) and
top-p (nucleus sampling, Holtzman et al., 2020), each over what the one before it left. What a row
gets does not depend on the rows beside it.

Sorting a vocabulary takes ten times as long as all the rest, so nothing here sorts one. Filters
mostly leave few tokens: `among_likeliest` looks for them among the likeliest ones, and says where
they are not all there; `whole_vocabulary` serves any row.

Shapes: R rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch

from assembler.engine import blockwise
from assembler.engine.sampling_params import SamplingParams

# How many of the likeliest tokens are looked at first: the fewest that hold a row's top-k, and some
# more of them to see the tokens that tie with the last.
_HEADS = (64, 272)
_TIES = 16
# And how many for the nucleus, in the whole vocabulary.
_NUCLEUS_HEAD = 1024


class Candidates(NamedTuple):
    """Tokens that may be drawn, in the order of their ids."""

    weights: torch.Tensor  # [R, C] proportional to the probabilities; 0: never
    token_ids: torch.Tensor | None  # [R, C]; None: C is V and the ids are the columns


def head_width(params: SamplingParams) -> int | None:
    """How many of the likeliest tokens to try with such a row; None: the whole vocabulary."""
    if params.top_k > 0:
        return next((head for head in _HEADS if params.top_k + _TIES <= head), None)
    return _HEADS[0] if params.top_p < 1 or params.min_p > 0 else None


def among_likeliest(
    logits: torch.Tensor, params: SequenceOf[SamplingParams], width: int
) -> tuple[Candidates, torch.Tensor]:
    """Candidates of rows of one `head_width`, and in which rows [R] they are not all.

    Args:
        logits: [R, V] fp32.
    """
    vocab_size = logits.shape[-1]
    width = min(width, vocab_size)
    logits_RC, token_ids = blockwise.top_k(logits, width)
    scaled = logits_RC - logits_RC[:, :1]
    scaled /= _column([p.temperature for p in params], logits)
    if any(p.min_p > 0 for p in params):
        scaled.masked_fill_(scaled < _column(_log_min_p(params), logits), -math.inf)
    if any(p.top_k > 0 for p in params):
        # 0 and -1 are no limit.
        last = [[(min(p.top_k, width) if p.top_k > 0 else width) - 1] for p in params]
        floors = logits_RC.gather(-1, torch.tensor(last, device=logits.device))
        unlimited = torch.tensor([[p.top_k <= 0] for p in params], device=logits.device)
        scaled.masked_fill_((logits_RC < floors) & ~unlimited, -math.inf)
    weights = scaled.exp_()
    incomplete = (weights[:, -1] > 0) & (width < vocab_size)
    if any(p.top_p < 1 for p in params):
        top_p = _column([p.top_p for p in params], logits)
        total, of_all = _total(logits, weights, params)
        weights.masked_fill_(weights < _nucleus_floors(weights, top_p * total, top_p), 0.0)
        # A nucleus of a sum that lacks tokens is too small, however it ends.
        incomplete &= (weights[:, -1] > 0) | ~of_all
    token_ids, order = token_ids.sort(dim=-1)  # as in the vocabulary, however ties came out
    return Candidates(weights.gather(-1, order), token_ids), incomplete


def _total(
    logits: torch.Tensor, weights: torch.Tensor, params: SequenceOf[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum [R, 1] of the weights of all tokens that min-p and top-k leave.

    Where neither is set, these are all tokens of the vocabulary and not only the likeliest, whose
    `weights` [R, C] relate to the first one's; the second result [R] says in which rows.
    """
    total = weights.sum(dim=-1, keepdim=True)
    of_all = torch.zeros(len(weights), dtype=torch.bool, device=logits.device)
    rows = [row for row, p in enumerate(params) if p.top_p < 1 and p.top_k <= 0 and p.min_p == 0]
    if rows:
        index = torch.tensor(rows, device=logits.device)
        scaled = _scaled(logits[index], [params[row] for row in rows])
        total[index] = 1 / scaled.softmax(dim=-1).amax(dim=-1, keepdim=True)
        of_all[index] = True
    return total, of_all


def whole_vocabulary(logits: torch.Tensor, params: SequenceOf[SamplingParams]) -> Candidates:
    """Candidates of any rows: the weights [R, V] of all tokens; `logits` [R, V] (fp32) stay."""
    scaled = _scaled(logits, params)
    if any(p.min_p > 0 for p in params):
        floors = scaled.amax(dim=-1, keepdim=True) + _column(_log_min_p(params), logits)
        scaled = scaled.masked_fill(scaled < floors, -math.inf)
    top_k = [p.top_k if 0 < p.top_k < logits.shape[-1] else None for p in params]
    if any(top_k):
        scaled = scaled.masked_fill(scaled < _top_k_floors(scaled, top_k), -math.inf)
    weights = scaled.softmax(dim=-1)
    if any(p.top_p < 1 for p in params):
        top_p = _column([p.top_p for p in params], weights)
        weights.masked_fill_(weights < _top_p_floors(weights, top_p), 0.0)
    return Candidates(weights, None)


def _scaled(logits: torch.Tensor, params: SequenceOf[SamplingParams]) -> torch.Tensor:
    """`logits` [R, V] by temperature, up to a constant."""
    if all(p.temperature == 1.0 for p in params):
        return logits
    scaled = logits - logits.amax(dim=-1, keepdim=True)  # <= 0: no temperature can overflow
    return scaled.div_(_column([p.temperature for p in params], logits))


def _log_min_p(params: SequenceOf[SamplingParams]) -> list[float]:
    return [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params]


def _top_k_floors(logits: torch.Tensor, top_k: list[int | None]) -> torch.Tensor:
    """The k-th largest logit of each row, [R, 1]; -inf where k is None.

    Tokens that tie with it are as good, so all that are not below it are kept.
    """
    width = max(k for k in top_k if k is not None)
    largest, _ = blockwise.top_k(logits, width)
    last = torch.tensor([[(k or width) - 1] for k in top_k], device=logits.device)
    everything = torch.tensor([[k is None] for k in top_k], device=logits.device)
    return largest.gather(-1, last).masked_fill(everything, -math.inf)


def _top_p_floors(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The least probability in each row's nucleus, [R, 1]; 0 where `top_p` [R, 1] is 1.

    It is sought among the likeliest tokens, and where that fails among all.
    """
    head, _ = blockwise.top_k(probs, min(_NUCLEUS_HEAD, probs.shape[-1]))
    floors = _nucleus_floors(head, top_p, top_p)
    short = ((head.sum(dim=-1, keepdim=True) < top_p) & (top_p < 1)).squeeze(1)
    if short.any() and head.shape[-1] < probs.shape[-1]:
        every = probs[short].sort(dim=-1, descending=True).values
        floors[short] = _nucleus_floors(every, top_p[short], top_p[short])
    return floors


def _nucleus_floors(weights: torch.Tensor, mass: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The least weight in each row's nucleus, [R, 1]; 0 where `top_p` [R, 1] is 1.

    The nucleus is the smallest set of likeliest tokens of weight `mass` [R, 1], and those that tie
    with its last.

    Args:
        weights: [R, C] from the largest on.
    """
    summed = weights.cumsum(dim=-1)
    in_nucleus = (summed - weights) < mass  # the tokens before it do not reach the mass yet
    last = in_nucleus.sum(dim=-1, keepdim=True) - 1
    floors = weights.gather(-1, last.clamp(min=0))  # -1 only in rows of NaN
    return floors.masked_fill(top_p >= 1, 0.0)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """`values` as a column [R, 1] that broadcasts over the rows of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
