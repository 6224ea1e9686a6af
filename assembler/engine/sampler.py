"""Choosing the next token of every sequence of a step at once.

The order is vLLM's: temperature, then min-p (Nguyen et al., 2024), top-k (Fan et al., 2018) and
top-p (nucleus sampling, Holtzman et al., 2020), each over what the one before it left. A token is
then drawn by inverting the cumulative distribution with one uniform number a sequence. What a
sequence gets depends on its own logits and its own draws only, never on the rows beside it.

Shapes: R rows (sequences that sample), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf

import torch

from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence

# Looked at first for top-p: sorting a whole vocabulary takes ten times as long.
_TOP_P_HEAD = 1024
_NO_TOKEN = -1


class Sampler:
    """Samples on the logits' device; random numbers come from the CPU, alike on every device."""

    def __init__(self, seed: int | None = None) -> None:
        """`seed` is that of sequences that have none of their own; None: from the system."""
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def sample(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[int | None]:
        """A token id for each row of `logits` [R, V]; None where the row is not a distribution.

        A row fails if it holds NaN or +inf, or nothing but -inf.
        """
        if not sequences:
            return []
        logits = logits.float()
        best, token_ids = logits.max(dim=-1)  # NaN wins the maximum
        rows = [row for row, s in enumerate(sequences) if not s.params.is_greedy]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            drawing = [sequences[row] for row in rows]
            probs = probabilities(logits[index], [s.params for s in drawing])
            uniforms = _column(self._uniforms(drawing), probs)
            token_ids[index] = _invert_cdf(probs, uniforms, fallback=token_ids[index])
        token_ids = torch.where(best.isfinite(), token_ids, _NO_TOKEN)
        return [None if token_id == _NO_TOKEN else token_id for token_id in token_ids.tolist()]

    def _uniforms(self, sequences: SequenceOf[Sequence]) -> list[float]:
        """One number in [0, 1) for each sequence, from its own generator if it has one."""
        numbers = torch.rand(len(sequences), generator=self._generator, dtype=torch.float64)
        uniforms = numbers.tolist()
        for row, sequence in enumerate(sequences):
            if sequence.generator is not None:
                uniforms[row] = torch.rand(
                    (), generator=sequence.generator, dtype=torch.float64
                ).item()
        return uniforms


def probabilities(logits: torch.Tensor, params: SequenceOf[SamplingParams]) -> torch.Tensor:
    """What may be drawn, and how likely: [R, V], not normalised after top-p.

    Args:
        logits: [R, V] fp32.
        params: of each row; none of them greedy.
    """
    vocab_size = logits.shape[-1]
    logits = logits - logits.amax(dim=-1, keepdim=True)  # <= 0: no temperature can overflow
    logits /= _column([p.temperature for p in params], logits)
    if any(p.min_p > 0 for p in params):
        floors = [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params]
        logits.masked_fill_(logits < _column(floors, logits), -math.inf)
    top_k = [p.top_k if 0 < p.top_k < vocab_size else None for p in params]
    if any(top_k):
        logits.masked_fill_(logits < _top_k_floors(logits, top_k), -math.inf)
    probs = logits.softmax(dim=-1)
    if any(p.top_p < 1 for p in params):
        width = min(_TOP_P_HEAD, max(k or vocab_size for k in top_k))
        top_p = _column([p.top_p for p in params], probs)
        probs.masked_fill_(probs < _top_p_floors(probs, top_p, width), 0.0)
    return probs


def _top_k_floors(logits: torch.Tensor, top_k: list[int | None]) -> torch.Tensor:
    """The k-th largest logit of each row, [R, 1]; -inf where k is None.

    Tokens that tie with it are as good, so all that are not below it are kept.
    """
    width = max(k for k in top_k if k is not None)
    largest = logits.topk(width, dim=-1).values
    last = torch.tensor([[(k or width) - 1] for k in top_k], device=logits.device)
    everything = torch.tensor([[k is None] for k in top_k], device=logits.device)
    return largest.gather(-1, last).masked_fill(everything, -math.inf)


def _top_p_floors(probs: torch.Tensor, top_p: torch.Tensor, width: int) -> torch.Tensor:
    """The least probability in each row's nucleus, [R, 1]; 0 where `top_p` [R, 1] is 1.

    The nucleus is the smallest set of likeliest tokens of mass `top_p`, and those that tie with
    its last. It is sought among the `width` likeliest tokens, and where that fails among all.
    """
    likeliest = probs.topk(width, dim=-1).values
    mass = likeliest.cumsum(dim=-1)
    in_nucleus = (mass - likeliest) < top_p  # the tokens before it do not reach top_p yet
    last = in_nucleus.sum(dim=-1, keepdim=True) - 1
    floors = likeliest.gather(-1, last.clamp(min=0))  # -1 only in rows of NaN
    floors.masked_fill_(top_p >= 1, 0.0)
    if width < probs.shape[-1]:
        short = ((mass[:, -1:] < top_p) & (top_p < 1)).squeeze(1).nonzero().squeeze(1)
        if len(short):
            floors[short] = _top_p_floors(probs[short], top_p[short], probs.shape[-1])
    return floors


def _invert_cdf(
    probs: torch.Tensor, uniforms: torch.Tensor, fallback: torch.Tensor
) -> torch.Tensor:
    """The tokens [R] at which the cumulative sums of `probs` [R, V] pass `uniforms` [R, 1].

    `fallback` [R] is taken where that token has probability 0, which rounding may bring about: of
    a number next to 1, or of sums that are made in parallel.
    """
    cumulative = probs.cumsum(dim=-1)
    target = uniforms * cumulative[:, -1:]
    token_ids = torch.searchsorted(cumulative, target, right=True).clamp_(max=probs.shape[-1] - 1)
    likely = probs.gather(-1, token_ids) > 0
    return torch.where(likely.squeeze(1), token_ids.squeeze(1), fallback)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """`values` as a column [R, 1] that broadcasts over the rows of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
