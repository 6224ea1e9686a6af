"""What the sampler keeps of one sequence from step to step."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as SequenceOf

from assembler.engine.fused_sampling import row_of
from assembler.engine.logit_rules import LogitRules
from assembler.engine.logprobs import TokenLogprobs
from assembler.engine.penalties import TokenCounts
from assembler.engine.sampling_params import SamplingParams


class SamplingState:
    """Rules, counts and results of one sequence.

    It follows the sequence's tokens, and tokens are only ever added: a preemption changes nothing.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: SequenceOf[int] = (),
        *,
        index: int = 0,
        end_token_ids: Collection[int] = (),
        bad_words: SequenceOf[SequenceOf[int]] = (),
    ) -> None:
        """The state before the first token.

        Args:
            index: which of the request's samples it is; each draws other numbers from one seed.
            end_token_ids: what `params.min_tokens` keeps from coming too early.
            bad_words: the token ids of `params.bad_words`.
        """
        self.params = params
        self.index = index
        self.settings = row_of(params)  # as the kernels take them
        rules = LogitRules(params, end_token_ids, bad_words)
        self.rules: LogitRules | None = None if rules.is_empty else rules
        self.counts: TokenCounts | None = None
        if params.has_penalties:
            # Only the repetition penalty minds the prompt.
            minds_prompt = params.repetition_penalty != 1.0
            self.counts = TokenCounts(prompt_token_ids if minds_prompt else ())
        self.logprobs: list[TokenLogprobs] = []  # of each generated token, if they are asked for
        self.prompt_logprobs: list[TokenLogprobs] = []  # of the prompt's tokens 1, 2, ...
        self.failure: str | None = None  # why no token could be sampled
        self.is_plain = (
            params.is_greedy
            and self.rules is None
            and self.counts is None
            and params.logprobs is None
        )
