"""Validated, frozen settings: the base class, and the engine's own options.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    """All the findings of `error`, one a line."""
    lines = []
    for finding in error.errors(include_url=False):
        name = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            lines.append(f"unknown option '{name}'.{did_you_mean(name, options.model_fields)}")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            lines.append(f"{name}={finding['input']!r}: {message[0].lower()}{message[1:]}")
    return f"{options.__name__}: " + "\n  ".join(lines)


class EngineOptions(Options):
    """How much the engine runs at once and how much memory its cache may take (vLLM's names)."""

    max_model_len: int | None = Field(
        None, gt=0, description="tokens of prompt and output together; null: all the model allows"
    )
    max_num_seqs: int = Field(256, gt=0, description="sequences that run at a time")
    max_num_batched_tokens: int = Field(
        2048, gt=0, description="tokens of one step; longer prompts go in chunks"
    )
    kv_cache_memory_bytes: int | None = Field(
        None, gt=0, description="KV cache of each rank; null: a share of its device's memory"
    )
    page_size: int = Field(16, gt=0, description="tokens in a page of the KV cache")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="of requests without a seed of their own; null: random"
    )
