"""What `LLM` takes as prompts, conversations and sampling parameters, brought into one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from assembler.engine.sampling_params import SamplingParams
from assembler.errors import OptionError, RequestError, did_you_mean

# Or vLLM's {"prompt": text}, {"prompt_token_ids": ids}; or the ids in an array or tensor.
Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]

_FORMS = 'a prompt is a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": [...]}'


def as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt as a list of one."""
    if isinstance(prompts, str | bytes | bytearray | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable) or getattr(prompts, "ndim", 1) == 0:
        return [prompts]  # which is refused later, with all that is wrong
    if getattr(prompts, "ndim", None) == 1:  # an array or a tensor
        prompts = prompts.tolist()
    batch = list(prompts)
    return [batch] if batch and all(isinstance(p, Integral) for p in batch) else batch


def as_prompt(prompt: Prompt) -> tuple[str | Sequence[int], str | None]:
    """(what the engine takes: a text or token ids, the text of these ids if it is known).

    Raises:
        RequestError: it has none of the forms of a prompt, as far as that is no matter of its
            token ids.
    """
    if isinstance(prompt, Mapping):
        return _of_mapping(prompt)
    if isinstance(prompt, bytes | bytearray):
        raise RequestError(f"{_FORMS}, not {type(prompt).__name__}: decode it, prompt.decode()")
    if (dimensions := getattr(prompt, "ndim", None)) is None:
        return prompt, None
    if dimensions != 1:
        raise RequestError(f"{_FORMS}, not an array of {dimensions} dimensions")
    return prompt.tolist(), None


def _of_mapping(prompt: Mapping[str, Any]) -> tuple[str | Sequence[int], str | None]:
    known = ("prompt", "prompt_token_ids")
    if unknown := [key for key in prompt if key not in known]:
        near = did_you_mean(str(unknown[0]), known)
        raise RequestError(f"{_FORMS}; there is no {unknown[0]!r} in it.{near}")
    text, token_ids = (prompt.get(key) for key in known)
    if token_ids is None:
        if not isinstance(text, str):
            raise RequestError(f'{_FORMS}; "prompt" is {text!r:.40}')
        return text, None
    if isinstance(token_ids, str | bytes | Mapping) or not isinstance(text, str | None):
        raise RequestError(f"{_FORMS}, not {dict(prompt)!r:.80}")
    return as_prompt(token_ids)[0], text


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
