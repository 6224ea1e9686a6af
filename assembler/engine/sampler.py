"""Choosing the next token of every sequence of a step at once.

The order is vLLM's: logit bias, penalties and bans change the logits; then temperature, min-p,
top-k and top-p say what may be drawn (see `candidates`). A token is drawn by inverting the
cumulative distribution with one uniform number a sequence. What a sequence gets depends on its own
logits and its own draws only, never on the rows beside it.

Shapes: R rows (sequences that sample), V vocabulary, C candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as SequenceOf
from itertools import compress

import torch

from assembler.engine import blockwise
from assembler.engine.candidates import (
    Candidates,
    among_likeliest,
    head_width,
    whole_vocabulary,
)
from assembler.engine.fused_sampling import FusedSampling
from assembler.engine.host_copies import to_device
from assembler.engine.logit_rules import RuledRow, apply_bans, apply_bias
from assembler.engine.logprobs import token_logprobs
from assembler.engine.penalties import PenalisedRow, apply_penalties
from assembler.engine.random_numbers import uniforms
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.sequence import Sequence
from assembler.kernels.cpu_program import largest_columns
from assembler.kernels.fused import runs_fused
from assembler.kernels.sampling_torch import NO_TOKEN

# In place of a token; the first one is what the kernels say.
_NO_NUMBERS, _NOT_ALLOWED, _OVERFLOWN = NO_TOKEN, NO_TOKEN - 1, NO_TOKEN - 2
_REASONS = {
    _NO_NUMBERS: "the model's logits after {} tokens are not numbers (NaN or infinite), so no "
    "token can be sampled. Its weights are damaged, or a 16-bit dtype overflows: try "
    "dtype=float32.",
    _NOT_ALLOWED: "no token may follow after {} tokens: allowed_token_ids, bad_words and "
    "min_tokens leave none",
    _OVERFLOWN: "a logit after {} tokens is too large for float32 with logit_bias and penalties: "
    "use a repetition_penalty nearer to 1",
}


class Sampler:
    """Samples on the logits' device; random numbers come from the CPU, alike on every device."""

    def __init__(self, seed: int | None = None) -> None:
        """`seed` is that of sequences that have none of their own; None: from the system."""
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._fused = FusedSampling()
        # Whether the compiled kernels of the CPU are there, as where steps run on them. (To ask for
        # them might compile them.)
        self.has_cpu_kernels = False

    def sample(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[int | None]:
        """A token id for each row of `logits` [R, V]; None where there is none to be had.

        A row fails if it holds NaN or +inf or nothing but -inf, or if no token is allowed; the
        sequence's `sampling.failure` then says why. Log-probabilities that a sequence asks for are
        added to its `sampling.logprobs`.
        """
        if not sequences:
            return []
        if self.has_cpu_kernels and all(s.sampling.is_plain for s in sequences):
            return self.found(largest_columns(logits), sequences)
        token_ids = self.found(self.choose(logits, sequences).tolist(), sequences)
        _record_logprobs(logits, sequences, token_ids)
        return token_ids

    def choose(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> torch.Tensor:
        """The token id [R] of each row of `logits` [R, V], on their device; negative: none.

        With the kernels of a GPU the host does not wait for it, unless a row has log-probabilities,
        which `sample` adds.
        """
        edited = edited_logits(logits, sequences)
        if not self.has_cpu_kernels and runs_fused(edited):
            token_ids = self._fused.draw(edited, sequences, self._uniforms)
        else:
            token_ids = self._draw(edited, sequences)
        if edited is logits:
            return token_ids
        none = torch.where(edited.amax(dim=-1) == -torch.inf, _NOT_ALLOWED, _OVERFLOWN)
        none.masked_fill_(~logits.amax(dim=-1).isfinite(), _NO_NUMBERS)
        return torch.where(token_ids == _NO_NUMBERS, none, token_ids)

    @staticmethod
    def found(token_ids: list[int], sequences: SequenceOf[Sequence]) -> list[int | None]:
        """What `choose` has chosen, once it is known; `sample` says what comes of failures."""
        if min(token_ids, default=0) >= 0:
            return token_ids
        for token_id, sequence in zip(token_ids, sequences, strict=True):
            if token_id < 0:
                sequence.sampling.failure = _REASONS[token_id].format(len(sequence))
        return [None if token_id < 0 else token_id for token_id in token_ids]

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

    def _draw(self, logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> torch.Tensor:
        """What the Triton kernels do: the token of each row, `_NO_NUMBERS` if there is none."""
        token_ids = self._likeliest(logits)
        drawing = [row for row, s in enumerate(sequences) if not s.params.is_greedy]
        if drawing:
            failed = token_ids < 0
            numbers = self._uniforms([sequences[row] for row in drawing])
            draws = dict(zip(drawing, numbers, strict=True))
            _draw_all(logits, [s.params for s in sequences], draws, token_ids)
            token_ids.masked_fill_(failed, _NO_NUMBERS)
        return token_ids

    def _likeliest(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest token of each row, `_NO_NUMBERS` if it is no distribution."""
        if self.has_cpu_kernels:
            return torch.tensor(largest_columns(logits), dtype=torch.int64)
        best, token_ids = blockwise.largest(logits)
        return token_ids.masked_fill_(~best.isfinite(), _NO_NUMBERS)

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
    """`logits` [R, V] with the biases, penalties and bans of the sequences.

    A copy in float32; `logits` themselves where no sequence has any.
    """
    ruled, penalised = [], []
    for row, sequence in enumerate(sequences):
        state = sequence.sampling
        if state.rules is None and state.counts is None:
            continue
        prompt = sequence.num_prompt_tokens
        if state.rules is not None:
            banned = state.rules.banned(sequence.token_ids, prompt)
            ruled.append(RuledRow(row, state.rules, banned))
        if state.counts is not None:
            state.counts.catch_up(sequence.token_ids, prompt)
            penalised.append(PenalisedRow(row, sequence.params, state.counts))
    if not (ruled or penalised):
        return logits
    edited = logits.to(torch.float32, copy=True)
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
    """Draw a token for each row of `logits` that has a number in `draws`, into `token_ids`.

    How many of the likeliest tokens of a row are looked at is a matter of the row alone: sums of
    more or fewer of them could differ in the last bit, and with it the token.
    """
    by_width: defaultdict[int | None, list[int]] = defaultdict(list)
    for row in draws:
        by_width[head_width(params[row])].append(row)
    many = by_width.pop(None, [])
    for width, rows in by_width.items():
        chosen = _rows(logits, rows).float()
        found, incomplete = among_likeliest(chosen, [params[row] for row in rows], width)
        _draw(found, rows, draws, token_ids)
        many += compress(rows, incomplete.tolist())
    if many:
        found = whole_vocabulary(_rows(logits, many).float(), [params[row] for row in many])
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
    logits: torch.Tensor, sequences: SequenceOf[Sequence], token_ids: list[int | None]
) -> None:
    """Add what is known about the chosen tokens to the sequences that ask for it."""
    rows = [
        row
        for row, sequence in enumerate(sequences)
        if sequence.params.logprobs is not None and token_ids[row] is not None
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
