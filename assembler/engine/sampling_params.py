"""How a request's tokens are chosen and when it ends: vLLM's names, defaults and meanings.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from assembler.engine.options import Options

GREEDY_BELOW = 1e-5  # dividing by a smaller temperature only loses precision


class SamplingParams(Options):
    """Settings of one request.

    Raises:
        OptionError: an unknown name or a value out of range; all of them are listed.
    """

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
    seed: int | None = Field(
        None, ge=-1, lt=2**63, description="same seed, same draws, in any batch; null, -1: none"
    )
    max_tokens: int | None = Field(
        16, gt=0, description="tokens to generate at most; null: as many as fit"
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="the text ends before the first of these strings"
    )
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="tokens that end the text, besides the model's own"
    )
    ignore_eos: bool = Field(False, description="go on after the model's end-of-sequence token")

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_as_tuple(cls, stop: Any) -> Any:
        if isinstance(stop, str):
            return (stop,)
        return _as_tuple(stop)

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _stop_token_ids_as_tuple(cls, stop_token_ids: Any) -> Any:
        return _as_tuple(stop_token_ids)

    @field_validator("seed")
    @classmethod
    def _no_seed(cls, seed: int | None) -> int | None:
        return None if seed == -1 else seed

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW


def _as_tuple(values: Any) -> Any:
    """None and lists as the tuples they stand for; anything else is left for pydantic to refuse."""
    if values is None:
        return ()
    return tuple(values) if isinstance(values, list) else values
