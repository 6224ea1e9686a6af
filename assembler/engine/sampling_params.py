"""How a request's tokens are chosen and when it ends: vLLM's names, defaults and meanings.

What can be judged without the model is refused here; token ids and words are held against the
model's vocabulary when a request comes (see `param_checks`). Importing this module does not import
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from assembler.engine import foreign_options
from assembler.engine.options import ALL_TOKENS, Options

if TYPE_CHECKING:
    from typing import Self

MAX_SAMPLES = 16384  # vLLM's bound: each sample is a sequence of its own from the start
GREEDY_BELOW = 1e-5  # dividing by a smaller temperature only loses precision

TokenId = Annotated[int, Field(ge=0)]
Words = tuple[Annotated[str, Field(min_length=1)], ...]


class SamplingParams(Options):
    """Settings of one request.

    They are fixed once made, as many requests may have the same: `with_` makes changed ones.

    Raises:
        OptionError: an unknown name or a value out of range; all of them are listed.
    """

    elsewhere: ClassVar[Mapping[str, str]] = foreign_options.REQUEST

    temperature: float = Field(
        1.0, ge=0.0, allow_inf_nan=False, description="divides the logits; 0: greedy"
    )
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="draw from the fewest likeliest tokens of this mass"
    )
    top_k: int = Field(0, ge=-1, description="draw from this many likeliest tokens; 0, -1: all")
    min_p: float = Field(
        0.0, ge=0.0, le=1.0, description="leave out tokens below this share of the likeliest's"
    )
    presence_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="taken from the logits of tokens generated before"
    )
    frequency_penalty: float = Field(
        0.0, ge=-2.0, le=2.0, description="taken once for each time the token was generated"
    )
    repetition_penalty: float = Field(
        1.0,
        ge=1e-3,  # far below, logits divided by it are infinite
        allow_inf_nan=False,
        description="makes tokens of the prompt and the output less likely; below 1: likelier",
    )
    n: int = Field(1, gt=0, le=MAX_SAMPLES, description="samples of each prompt")
    seed: int | None = Field(
        None, ge=-1, lt=2**63, description="same seed, same draws, in any batch; null, -1: none"
    )
    max_tokens: int | None = Field(
        16, gt=0, description="tokens to generate at most; null: as many as fit"
    )
    min_tokens: int = Field(
        0, ge=0, description="no end of sequence, stop token or stop string before so many tokens"
    )
    stop: Words = Field((), description="the text ends before the first of these strings")
    stop_token_ids: tuple[TokenId, ...] = Field(
        (), description="tokens that end the text, besides the model's own"
    )
    ignore_eos: bool = Field(False, description="go on after the model's end-of-sequence token")
    bad_words: Words = Field((), description="words that are not generated")
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = Field(
        None, description="added to the logits of these tokens: {id: bias}, -100 to 100"
    )
    allowed_token_ids: tuple[TokenId, ...] | None = Field(
        None, description="only these tokens are generated; null: all"
    )
    logprobs: int | None = Field(
        None, ge=ALL_TOKENS, description="log-probabilities of so many likeliest tokens; -1: all"
    )
    prompt_logprobs: int | None = Field(
        None, ge=ALL_TOKENS, description="the same for each token of the prompt after the first"
    )
    skip_special_tokens: bool = Field(True, description="leave special tokens out of the text")
    include_stop_str_in_output: bool = Field(
        False, description="the text includes the stop string or stop token that ends it"
    )

    def __hash__(self) -> int:
        bias = None if self.logit_bias is None else frozenset(self.logit_bias.items())
        return hash((bias, *(v for k, v in self if k != "logit_bias")))

    @field_validator("stop", "bad_words", mode="before")
    @classmethod
    def _words_as_tuple(cls, words: Any) -> Any:
        return (words,) if isinstance(words, str) else _as_tuple(words)

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _token_ids_as_tuple(cls, token_ids: Any) -> Any:
        return _as_tuple(token_ids)

    @field_validator("allowed_token_ids", mode="before")
    @classmethod
    def _allowed_as_tuple(cls, token_ids: Any) -> Any:
        return None if token_ids is None else _as_tuple(token_ids)

    @field_validator("allowed_token_ids")
    @classmethod
    def _something_is_allowed(cls, token_ids: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if token_ids == ():
            raise ValueError("no token could be generated: name at least one, or leave it out")
        return token_ids

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _keys_of_json(cls, bias: Any) -> Any:
        """Token ids that JSON made texts of as the numbers they were."""
        if not isinstance(bias, Mapping):
            return bias
        return {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in bias.items()}

    @field_validator("seed")
    @classmethod
    def _no_seed(cls, seed: int | None) -> int | None:
        return None if seed == -1 else seed

    @field_validator("n")
    @classmethod
    def _samples_differ(cls, n: int, info: ValidationInfo) -> int:
        temperature = info.data.get("temperature", 1.0)
        if n > 1 and temperature < GREEDY_BELOW:
            raise ValueError("greedy samples are all the same: use n=1, or a temperature above 0")
        return n

    @field_validator("min_tokens")
    @classmethod
    def _fewer_than_most(cls, min_tokens: int, info: ValidationInfo) -> int:
        most = info.data.get("max_tokens")
        if most is not None and min_tokens > most:
            raise ValueError(f"it must not be more than max_tokens, which is {most}")
        return min_tokens

    def as_recommendation(self) -> Self:
        """The same, but `max_tokens` is no demand: it is cut to what fits behind a prompt."""
        return self._of_which_are_named(self.model_fields_set - {"max_tokens"})

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        """Whether tokens seen before weigh less (or more)."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


def _as_tuple(values: Any) -> Any:
    """None and lists as the tuples they stand for; anything else is left for pydantic to refuse."""
    if values is None:
        return ()
    return tuple(values) if isinstance(values, list) else values
