"""Holding sampling parameters against the model: token ids that exist, words that have tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from assembler.engine.options import ALL_TOKENS, MAX_LOGPROBS
from assembler.engine.sampling_params import SamplingParams
from assembler.errors import RequestError


class EncoderLike(Protocol):
    """Turns text into token ids."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


def check_params(
    params: SamplingParams,
    vocab_size: int,
    tokenizer: EncoderLike | None,
    max_logprobs: int = MAX_LOGPROBS,
) -> list[list[int]]:
    """The token ids of each of `params.bad_words`, in both of its spellings.

    Args:
        tokenizer: None: there is no text, hence no stop strings and no bad words.
        max_logprobs: the engine's option; -1: as many as there are tokens.

    Raises:
        RequestError: the model cannot do what `params` ask for; all reasons are listed.
    """
    findings = [
        unknown_token_ids("stop_token_ids", params.stop_token_ids, vocab_size),
        unknown_token_ids("allowed_token_ids", params.allowed_token_ids or (), vocab_size),
        unknown_token_ids("logit_bias", params.logit_bias or (), vocab_size),
    ]
    findings += _too_many_logprobs(params, vocab_size, max_logprobs)
    bad_words: list[list[int]] = []
    if tokenizer is not None:
        for word in params.bad_words:
            spellings = _spellings(word, tokenizer)
            bad_words += spellings
            if not spellings:
                findings.append(f"bad_words has {word!r}, which has no tokens")
            unknown = {i for spelling in spellings for i in spelling}
            findings.append(unknown_token_ids(f"bad_words ({word!r})", unknown, vocab_size))
    elif params.stop:
        findings.append("there is no tokenizer to find stop strings: use stop_token_ids")
    if tokenizer is None and params.bad_words:
        findings.append("there is no tokenizer to find bad_words: use logit_bias")
    if reasons := [finding for finding in findings if finding]:
        raise RequestError("\n  ".join(reasons))
    return bad_words


def _too_many_logprobs(params: SamplingParams, vocab_size: int, most: int) -> list[str]:
    """What is wrong with how many log-probabilities are asked for."""
    findings = []
    for name in ("logprobs", "prompt_logprobs"):
        asked = getattr(params, name)
        if asked is None:
            continue
        if asked > vocab_size:
            findings.append(f"{name} is {asked}: the model has {vocab_size} tokens (-1: all)")
        elif most != ALL_TOKENS and (vocab_size if asked == ALL_TOKENS else asked) > most:
            findings.append(
                f"{name} is {asked}{', all tokens' if asked == ALL_TOKENS else ''}: the engine "
                f"reports {most} at most. Make it with max_logprobs={asked} to allow more"
            )
    return findings


def unknown_token_ids(where: str, token_ids: Iterable[int], vocab_size: int) -> str | None:
    """What is wrong with `token_ids`, None if the model knows all of them."""
    wrong = sorted({i for i in token_ids if not 0 <= i < vocab_size})
    if not wrong:
        return None
    listed = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return (
        f"{where} has token ids that the model does not know: {listed}. "
        f"They must be 0 to {vocab_size - 1}."
    )


def _spellings(word: str, tokenizer: EncoderLike) -> list[list[int]]:
    """The token ids of `word` at the beginning of a text and after a space."""
    word = word.lstrip()
    found: list[list[int]] = []
    for text in (word, f" {word}") if word else ():
        token_ids = list(tokenizer.encode(text, add_special_tokens=False))
        if token_ids and token_ids not in found:
            found.append(token_ids)
    return found
