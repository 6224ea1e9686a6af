"""Validated, frozen settings: the base class, and the engine's own options.

Importing this module does not import torch.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import suppress
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from assembler.engine import foreign_options
from assembler.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from typing import Self

ALL_TOKENS = -1  # of `logprobs` and the like: as many as the model has tokens
MAX_LOGPROBS = 20


class Options(BaseModel):
    """Frozen settings whose constructor refuses unknown names and wrong values.

    Types are strict (`"1"` and `True` are not 1; numpy's whole numbers are ints), and one
    `OptionError` lists all that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    elsewhere: ClassVar[Mapping[str, str]] = {}  # what others call an option: what to do here

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in values.items()})
        except ValidationError as error:
            raise OptionError(_explain(error, type(self))) from None

    def with_(self, **changes: Any) -> Self:
        """These settings with some of them changed.

        Raises:
            OptionError: an unknown name or a wrong value, as of the constructor.
        """
        changed = type(self)(**{**dict(self), **changes})
        return changed._of_which_are_named(self.model_fields_set | changes.keys())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Pydantic's way to copy; `update` is held against the fields, as by `with_`."""
        return self.with_(**update) if update else super().model_copy(deep=deep)

    def __setattr__(self, name: str, value: Any) -> None:
        what = type(self).__name__
        raise OptionError(
            f"{what} cannot be changed, as several may use them: make others of them by "
            f"with_({name}={value!r:.40}), and use what that returns"
        )

    def _of_which_are_named(self, names: set[str]) -> Self:
        """The same settings, of which those were chosen; the others are defaults."""
        return self.model_construct(_fields_set=set(names), **dict(self))


def _plain(value: Any) -> Any:
    """`value` with the whole numbers of numpy and torch, also within it, as the ints they are."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if hasattr(value, "__index__"):
        with suppress(TypeError):  # an array: its own type is to be named
            return operator.index(value)
    return value


def _explain(error: ValidationError, options: type[Options]) -> str:
    """All the findings of `error`, one a line, in terms of what was given."""
    lines = []
    for finding in error.errors(include_url=False):
        name, *inside = (place for place in finding["loc"] if place != "[key]")  # pydantic's mark
        info = options.model_fields.get(str(name))
        alternatives = _alternatives(None if info is None else info.annotation)
        if finding["type"] == "extra_forbidden":
            lines.append(_explain_unknown(str(name), options))
        elif len(alternatives) > 1 and inside:  # one finding for each of them, none of which fits
            line = f"{name}={finding['input']!r}: should be {' or '.join(alternatives)}"
            lines += [] if line in lines else [line]
        else:
            at = f"{name}{''.join(f'[{place}]' for place in inside)}"
            message = finding["msg"].removeprefix("Value error, ")
            lines.append(f"{at}={finding['input']!r}: {message[0].lower()}{message[1:]}")
    return "\n  ".join(lines)


def _explain_unknown(name: str, options: type[Options]) -> str:
    """What to use in place of an option that there is not."""
    if (instead := options.elsewhere.get(name)) is not None:
        return f"unknown option '{name}': {instead}"
    return f"unknown option '{name}'.{did_you_mean(name, options.model_fields)}"


def _alternatives(annotation: Any) -> list[str]:
    """What a field takes that takes several things, as a person writes them."""
    if get_origin(annotation) not in (Union, UnionType):
        return []
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    found = []
    for member in get_args(annotation):
        if get_origin(member) is Literal:
            found += map(repr, get_args(member))
        elif get_origin(member) is tuple:
            found.append("a list")
        elif member is not type(None):
            found.append(words.get(member, getattr(member, "__name__", str(member))))
    return found


class EngineOptions(Options):
    """How much the engine runs at once and how much memory its cache may take (vLLM's names)."""

    elsewhere: ClassVar[Mapping[str, str]] = foreign_options.ENGINE

    max_model_len: int | None = Field(
        None, gt=0, description="tokens of prompt and output together; null: all the model allows"
    )
    max_num_seqs: int = Field(256, gt=0, description="sequences that run at a time")
    max_num_batched_tokens: int | None = Field(
        None,
        gt=0,
        description="tokens of one step; longer prompts go in chunks; null: 2048, and enough for a "
        "whole sequence where prompts are not cut",
    )
    enable_chunked_prefill: bool = Field(
        True, description="cut prompts to fill steps; false: a prompt runs in one step"
    )
    enable_prefix_caching: bool = Field(
        True, description="requests that begin alike share the pages of their beginning"
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="share of the device's memory (also a CPU's) for model and KV cache together; "
        "null: on a GPU 0.9 of what is free, on a CPU a quarter of all for the cache",
    )
    kv_cache_memory_bytes: int | None = Field(
        None, gt=0, description="KV cache of each rank, in place of gpu_memory_utilization"
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        "auto",
        description="of cached keys and values; auto: as the weights; fp8: e4m3, half the memory "
        "of bfloat16, numbers beyond 448 are cut to it",
    )
    page_size: int = Field(16, gt=0, description="tokens in a page of the KV cache")
    enforce_eager: bool = Field(
        False,
        description="run the torch module as it is, without compiled kernels (CPU) or CUDA graphs",
    )
    overlap_scheduling: bool | None = Field(
        None,
        description="make the next step while the device runs one, before its tokens are known; "
        "null: on a GPU that is not shared by ranks",
    )
    max_logprobs: int = Field(
        MAX_LOGPROBS,
        ge=ALL_TOKENS,
        description="the most log-probabilities a token that a request may ask for; -1: all",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="of requests without a seed of their own; null: random"
    )

    @field_validator("kv_cache_memory_bytes")
    @classmethod
    def _one_size(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get("gpu_memory_utilization") is not None:
            raise ValueError("gpu_memory_utilization is given too: give one of them")
        return size
