"""Validated, frozen settings: the base class, and the engine's own options.

Importing this module does not import torch.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from assembler.errors import OptionError, did_you_mean


class Options(BaseModel):
    """Frozen settings whose constructor refuses unknown names and wrong values.

    Types are strict (`"1"` and `True` are not 1), and one `OptionError` lists all that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(_explain(error, type(self))) from None


def _explain(error: ValidationError, options: type[Options]) -> str:
    """All the findings of `error`, one a line, in terms of what was given."""
    lines = []
    for finding in error.errors(include_url=False):
        name, *inside = (place for place in finding["loc"] if place != "[key]")  # pydantic's mark
        info = options.model_fields.get(str(name))
        alternatives = _alternatives(None if info is None else info.annotation)
        if finding["type"] == "extra_forbidden":
            lines.append(f"unknown option '{name}'.{did_you_mean(str(name), options.model_fields)}")
        elif len(alternatives) > 1 and inside:  # one finding for each of them, none of which fits
            line = f"{name}={finding['input']!r}: should be {' or '.join(alternatives)}"
            lines += [] if line in lines else [line]
        else:
            at = f"{name}{''.join(f'[{place}]' for place in inside)}"
            message = finding["msg"].removeprefix("Value error, ")
            lines.append(f"{at}={finding['input']!r}: {message[0].lower()}{message[1:]}")
    return "\n  ".join(lines)


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
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="of requests without a seed of their own; null: random"
    )

    @field_validator("kv_cache_memory_bytes")
    @classmethod
    def _one_size(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is not None and info.data.get("gpu_memory_utilization") is not None:
            raise ValueError("gpu_memory_utilization is given too: give one of them")
        return size
