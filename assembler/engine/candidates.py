"""Which tokens may be drawn and how likely: temperature, min-p, top-k and top-p.

The order is vLLM's: temperature, then min-p (Nguyen et al., 2024), top-k (Fan et al., 2018) and
top-p (nucleus sampling, Holtzman et al., 2020), each over what the one before it left. What a row
gets does not depend on the rows beside it.

Sorting a vocabulary takes ten times as long as all the rest, so nothing here sorts one: a small
top-k is sought first and everything else happens among its tokens; the nucleus is sought among ever
more of the likeliest tokens.

Shapes: R rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch

from assembler.engine.sampling_params import SamplingParams

# How many of the likeliest tokens are looked at for the nucleus before the whole vocabulary.
_TOP_P_HEADS = (64, 1024)
# Up to this top-k the candidates are taken out of the vocabulary first, with some more of them to
# see the tokens that tie with the last.
_SMALL_TOP_K = 256
_TIES = 16


class Candidates(NamedTuple):
    """Tokens that may be drawn, in the order of their ids."""

    weights: torch.Tensor  # [R, C] proportional to the probabilities; 0: never
    token_ids: torch.Tensor | None  # [R, C]; None: C is V and the ids are the columns


def has_small_top_k(params: SamplingParams) -> bool:
    """Whether `small_top_k` serves a row of these parameters."""
    return 0 < params.top_k <= _SMALL_TOP_K


def small_top_k(
    logits: torch.Tensor, params: SequenceOf[SamplingParams]
) -> tuple[Candidates, torch.Tensor]:
    """Candidates of rows with `has_small_top_k`, and which rows [R] they are not all for.

    More tokens tie with the last of those rows than were looked at: `whole_vocabulary` is for them.
    """
    width = min(max(p.top_k for p in params) + _TIES, logits.shape[-1])
    largest, token_ids = logits.topk(width, dim=-1)
    top_k = torch.tensor([min(p.top_k, width) for p in params], device=logits.device)
    floors = largest.gather(-1, top_k.unsqueeze(1) - 1)
    overflows = (largest[:, -1] >= floors[:, 0]) & (width < logits.shape[-1])
    token_ids, order = token_ids.sort(dim=-1)  # as in the vocabulary, however ties came out
    kept = largest.masked_fill(largest < floors, -math.inf).gather(-1, order)
    weights = _filtered(kept, params, [None] * len(params))
    return Candidates(weights, token_ids), overflows


def whole_vocabulary(logits: torch.Tensor, params: SequenceOf[SamplingParams]) -> Candidates:
    """Candidates of any rows: the weights [R, V] of all tokens."""
    top_k = [p.top_k if 0 < p.top_k < logits.shape[-1] else None for p in params]
    return Candidates(_filtered(logits, params, top_k), None)


def _filtered(
    logits: torch.Tensor, params: SequenceOf[SamplingParams], top_k: list[int | None]
) -> torch.Tensor:
    """The weights [R, C] of tokens with `logits` [R, C] (fp32, which stay as they are)."""
    logits = logits - logits.amax(dim=-1, keepdim=True)  # <= 0: no temperature can overflow
    if any(p.temperature != 1.0 for p in params):
        logits /= _column([p.temperature for p in params], logits)
    if any(p.min_p > 0 for p in params):
        floors = [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params]
        logits.masked_fill_(logits < _column(floors, logits), -math.inf)
    if any(top_k):
        logits.masked_fill_(logits < _top_k_floors(logits, top_k), -math.inf)
    if all(p.top_p >= 1 for p in params):
        return logits.exp_()
    probs = logits.softmax(dim=-1)
    top_p = _column([p.top_p for p in params], probs)
    return probs.masked_fill_(probs < _top_p_floors(probs, top_p, _TOP_P_HEADS), 0.0)


def _top_k_floors(logits: torch.Tensor, top_k: list[int | None]) -> torch.Tensor:
    """The k-th largest logit of each row, [R, 1]; -inf where k is None.

    Tokens that tie with it are as good, so all that are not below it are kept.
    """
    width = max(k for k in top_k if k is not None)
    largest = logits.topk(width, dim=-1).values
    last = torch.tensor([[(k or width) - 1] for k in top_k], device=logits.device)
    everything = torch.tensor([[k is None] for k in top_k], device=logits.device)
    return largest.gather(-1, last).masked_fill(everything, -math.inf)


def _top_p_floors(probs: torch.Tensor, top_p: torch.Tensor, heads: SequenceOf[int]) -> torch.Tensor:
    """The least probability in each row's nucleus, [R, 1]; 0 where `top_p` [R, 1] is 1.

    The nucleus is the smallest set of likeliest tokens of mass `top_p`, and those that tie with
    its last. It is sought among the `heads[0]` likeliest tokens, where that fails among the next
    number of them, and at last among all.
    """
    width = min(heads[0], probs.shape[-1]) if heads else probs.shape[-1]
    likeliest = probs.topk(width, dim=-1).values
    mass = likeliest.cumsum(dim=-1)
    in_nucleus = (mass - likeliest) < top_p  # the tokens before it do not reach top_p yet
    last = in_nucleus.sum(dim=-1, keepdim=True) - 1
    floors = likeliest.gather(-1, last.clamp(min=0))  # -1 only in rows of NaN
    floors.masked_fill_(top_p >= 1, 0.0)
    if width < probs.shape[-1]:
        short = ((mass[:, -1:] < top_p) & (top_p < 1)).squeeze(1).nonzero().squeeze(1)
        if len(short):
            floors[short] = _top_p_floors(probs[short], top_p[short], heads[1:])
    return floors


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """`values` as a column [R, 1] that broadcasts over the rows of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
