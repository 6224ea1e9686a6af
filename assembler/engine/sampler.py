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
    logits = logits / _column([p.temperature for p in params], logits)
    if any(p.min_p > 0 for p in params):
        floors = [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params]
        logits = logits.masked_fill(logits < _column(floors, logits), -math.inf)
    rows = [row for row, p in enumerate(params) if 0 < p.top_k < vocab_size]
    if rows:
        logits[rows] = _keep_top_k(logits[rows], [params[row].top_k for row in rows])
    probs = logits.softmax(dim=-1)
    rows = [row for row, p in enumerate(params) if p.top_p < 1]
    if rows:
        top_p = _column([params[row].top_p for row in rows], probs)
        probs[rows] = _keep_top_p(probs[rows], top_p)
    return probs


def _keep_top_k(logits: torch.Tensor, top_k: list[int]) -> torch.Tensor:
    """`logits` [R, V] with all below the k-th largest at -inf; ties with the k-th stay."""
    largest = logits.topk(max(top_k), dim=-1).values
    last = torch.tensor(top_k, device=logits.device).unsqueeze(1) - 1
    return logits.masked_fill(logits < largest.gather(-1, last), -math.inf)


def _keep_top_p(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """`probs` [R, V] with 0 outside the smallest set of likeliest tokens of mass `top_p` [R, 1].

    Tokens as likely as the last of the set stay too, so that nothing hangs on how ties are sorted.
    """
    floor = _top_p_floor(probs, top_p, min(_TOP_P_HEAD, probs.shape[-1]))
    return probs.masked_fill(probs < floor, 0.0)


def _top_p_floor(probs: torch.Tensor, top_p: torch.Tensor, width: int) -> torch.Tensor:
    """The least probability in each row's nucleus, [R, 1], sought among the `width` likeliest."""
    likeliest = probs.topk(width, dim=-1).values
    mass = likeliest.cumsum(dim=-1)
    in_nucleus = (mass - likeliest) < top_p  # the tokens before it do not reach top_p yet
    last = in_nucleus.sum(dim=-1, keepdim=True) - 1
    floor = likeliest.gather(-1, last.clamp(min=0))  # -1 only in rows of NaN
    if width < probs.shape[-1]:
        short = (mass[:, -1:] < top_p).squeeze(1).nonzero().squeeze(1)
        if len(short):
            floor[short] = _top_p_floor(probs[short], top_p[short], probs.shape[-1])
    return floor


def _invert_cdf(
    probs: torch.Tensor, uniforms: torch.Tensor, fallback: torch.Tensor
) -> torch.Tensor:
    """The tokens [R] at which the cumulative sums of `probs` [R, V] pass `uniforms` [R, 1].

    `fallback` [R] is taken where that token has probability 0: sums made in parallel may round
    differently from one token to the next.
    """
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    token_ids = torch.searchsorted(cumulative, target, right=True).clamp_(max=probs.shape[-1] - 1)
    likely = probs.gather(-1, token_ids) > 0
    return torch.where(likely.squeeze(1), token_ids.squeeze(1), fallback)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    """`values` as a column [R, 1] that broadcasts over the rows of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
