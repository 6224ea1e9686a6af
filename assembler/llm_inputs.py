"""What `LLM` takes as prompts, conversations and sampling parameters, brought into one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from assembler.engine.sampling_params import SamplingParams
from assembler.errors import OptionError

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


def as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt as a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable):
        return [prompts]  # which the engine refuses, saying what a prompt is
    batch = list(prompts)
    return [batch] if batch and all(isinstance(p, Integral) for p in batch) else batch


def as_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> Sequence[Sequence[Message]]:
    """Several conversations; what is no list of lists is one, for the template to judge."""
    several = isinstance(messages, list | tuple) and messages
    if several and all(isinstance(conversation, list | tuple) for conversation in messages):
        return messages
    return [messages]


def params_for(
    batch: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] | None,
    default: Callable[[], SamplingParams] = SamplingParams,
) -> list[SamplingParams]:
    """The parameters of each prompt; OptionError if they are not that many, or something else.

    Args:
        default: makes those of all prompts if `params` is None.
    """
    if params is None:
        params = default()
    if isinstance(params, SamplingParams):
        return [params] * len(batch)
    if not isinstance(params, Sequence) or not all(isinstance(p, SamplingParams) for p in params):
        raise OptionError(f"sampling_params is SamplingParams or a list of them, not {params!r}")
    if len(params) != len(batch):
        raise OptionError(
            f"{len(batch)} prompts but {len(params)} sampling_params: give one, or one for each"
        )
    return list(params)
