"""Choosing the next token of every sequence of a step at once.

The order is vLLM's: logit bias, penalties and bans change the logits; then temperature, min-p,
top-k and top-p say what may be drawn (see `candidates`). A token is drawn by inverting the
cumulative distribution with one uniform number a sequence. What a sequence gets depends on its own
logits and its own draws only, never on the rows beside it.

Shapes: R rows (sequences that sample), V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from itertools import compress

import torch

from assembler.engine import blockwise
from assembler.engine.candidates import (
    Candidates,
    among_likeliest,
    are_likely_few,
    whole_vocabulary,
)
from assembler.engine.fused_sampling import draw_in_one_pass
from assembler.engine.host_copies import to_device
from assembler.engine.logit_rules import RuledRow, apply_bans, apply_bias
from assembler.engine.logprobs import token_logprobs
from assembler.engine.penalties import PenalisedRow, apply_penalties
from assembler.engine.random_numbers import uniforms
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence
from assembler.kernels.fused import runs_fused

_NO_TOKEN = -1
_NOT_NUMBERS = (
    "the model's logits after {} tokens are not numbers (NaN or infinite), so no token can be "
    "sampled. Its weights are damaged, or a 16-bit dtype overflows: try dtype=float32."
)
_NOTHING_ALLOWED = (
    "no token may follow after {} tokens: allowed_token_ids, bad_words and min_tokens leave none"
)


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
        """A token id for each row of `logits` [R, V]; None where there is none to be had.

        A row fails if it holds NaN or +inf or nothing but -inf, or if no token is allowed; the
        sequence's `sampling.failure` then says why. Log-probabilities that a sequence asks for are
        added to its `sampling.logprobs`.
        """
        if not sequences:
            return []
        if all(sequence.sampling.is_plain for sequence in sequences):
            best, chosen = blockwise.largest(logits)
            token_ids = torch.where(best.isfinite(), chosen, _NO_TOKEN).tolist()
        else:
            token_ids = self._choose(logits, sequences)
        if _NO_TOKEN in token_ids:
            _explain_failures(logits, sequences, token_ids)
        _record_logprobs(logits, sequences, token_ids)
        return [None if token_id == _NO_TOKEN else token_id for token_id in token_ids]

    def score_prompt(self, sequence: Sequence, start: int, logits: torch.Tensor) -> None:
        """Add the log-probabilities of a prompt's tokens to the sequence's `sampling`.

        Args:
            start: position in the prompt of the token that row 0 comes after.
            logits: [rows, V]; row i says what may follow position `start` + i.
        """
        known = sequence.sampling.prompt_logprobs
        del known[start:]  # of chunks that are computed again
        following = sequence.token_ids[start + 1 : start + 1 + len(logits)]
        counts = [sequence.params.prompt_logprobs] * len(following)
        known += token_logprobs(logits, following, counts)

    def _choose(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[int]:
        """The token of each row, `_NO_TOKEN` where there is none."""
        logits = edited_logits(logits, sequences)
        best, token_ids = blockwise.largest(logits)
        rows = [row for row, s in enumerate(sequences) if not s.params.is_greedy]
        if rows:
            numbers = self._uniforms([sequences[row] for row in rows])
            if runs_fused(logits):
                params = [sequences[row].params for row in rows]
                index = to_device(rows, torch.int64, logits.device)
                token_ids[index] = draw_in_one_pass(_rows(logits, rows), params, numbers)
            else:
                draws = dict(zip(rows, numbers, strict=True))
                _draw_all(logits, [s.params for s in sequences], draws, token_ids)
        return torch.where(best.isfinite(), token_ids, _NO_TOKEN).tolist()

    def _uniforms(self, sequences: SequenceOf[Sequence]) -> list[float]:
        """One number in [0, 1) for each sequence; from its own seed if it has one."""
        numbers = torch.rand(len(sequences), generator=self._generator, dtype=torch.float64)
        drawn = numbers.tolist()
        seeded = [row for row, s in enumerate(sequences) if s.params.seed is not None]
        if seeded:
            own = uniforms(
                [sequences[row].params.seed for row in seeded],
                [sequences[row].sampling.index for row in seeded],
                [sequences[row].num_generated_tokens for row in seeded],
            )
            for row, number in zip(seeded, own, strict=True):
                drawn[row] = number
        return drawn


def edited_logits(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> torch.Tensor:
    """`logits` [R, V] in fp32, with the biases, penalties and bans of the sequences."""
    ruled, penalised = [], []
    for row, sequence in enumerate(sequences):
        state, prompt = sequence.sampling, sequence.num_prompt_tokens
        if state.rules is not None:
            banned = state.rules.banned(sequence.token_ids, prompt)
            ruled.append(RuledRow(row, state.rules, banned))
        if state.counts is not None:
            state.counts.catch_up(sequence.token_ids, prompt)
            penalised.append(PenalisedRow(row, sequence.params, state.counts))
    edited = logits.float()
    if edited is logits and (ruled or penalised):
        edited = logits.clone()
    if ruled:
        apply_bias(edited, ruled)
    if penalised:
        apply_penalties(edited, penalised)
    if ruled:
        apply_bans(edited, ruled)
    return edited


def _rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Those `rows` of `logits` [R, V]; no copy if they are all of them."""
    if len(rows) == len(logits):
        return logits if rows == sorted(rows) else logits[rows]
    return logits[to_device(rows, torch.int64, logits.device)]


def _draw_all(
    logits: torch.Tensor,
    params: SequenceOf[SamplingParams],
    draws: dict[int, float],
    token_ids: torch.Tensor,
) -> None:
    """Draw a token for each row of `logits` that has a number in `draws`, into `token_ids`."""
    few = [row for row in draws if are_likely_few(params[row])]
    many = [row for row in draws if not are_likely_few(params[row])]
    if few:
        found, incomplete = among_likeliest(_rows(logits, few), [params[r] for r in few])
        _draw(found, few, draws, token_ids)
        many += compress(few, incomplete.tolist())
    if many:
        found = whole_vocabulary(_rows(logits, many), [params[row] for row in many])
        _draw(found, many, draws, token_ids)


def _draw(
    candidates: Candidates, rows: list[int], draws: dict[int, float], token_ids: torch.Tensor
) -> None:
    """Draw a token for each of `rows` and put it into `token_ids` [all rows].

    What stands there (the likeliest token) stays where the draw hits a token of weight 0, which
    rounding may bring about: of a number next to 1, or of sums that are made in parallel.
    """
    weights = candidates.weights
    index = torch.tensor(rows, device=weights.device)
    numbers = torch.tensor([[draws[row]] for row in rows], dtype=weights.dtype)
    columns = blockwise.invert_cdf(weights, numbers.to(weights.device))
    drawn = columns if candidates.token_ids is None else candidates.token_ids.gather(-1, columns)
    likely = weights.gather(-1, columns) > 0
    token_ids[index] = torch.where(likely, drawn, token_ids[index].unsqueeze(1)).squeeze(1)


def _record_logprobs(
    logits: torch.Tensor, sequences: SequenceOf[Sequence], token_ids: list[int]
) -> None:
    """Add what is known about the chosen tokens to the sequences that ask for it."""
    rows = [
        row
        for row, sequence in enumerate(sequences)
        if sequence.params.logprobs is not None and token_ids[row] != _NO_TOKEN
    ]
    if rows:
        found = token_logprobs(
            _rows(logits, rows),
            [token_ids[row] for row in rows],
            [sequences[row].params.logprobs for row in rows],
        )
        for row, logprobs in zip(rows, found, strict=True):
            known = sequences[row].sampling.logprobs
            del known[sequences[row].num_generated_tokens :]  # of a step that failed afterwards
            known.append(logprobs)


def _explain_failures(
    logits: torch.Tensor, sequences: SequenceOf[Sequence], token_ids: list[int]
) -> None:
    """Say in the state of each sequence without a token why it has none."""
    for row, token_id in enumerate(token_ids):
        if token_id == _NO_TOKEN:
            sequence = sequences[row]
            healthy = bool(logits[row].max().isfinite())
            reason = _NOTHING_ALLOWED if healthy else _NOT_NUMBERS
            sequence.sampling.failure = reason.format(len(sequence))
