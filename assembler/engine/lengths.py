"""How long sequences and steps may be: what the options say, and what they must not say together.

All of it follows from the options and the model's config, so it is known before weights are read.
"""

from __future__ import annotations

from assembler.engine.options import EngineOptions
from assembler.errors import OptionError

# Of a model that states no length, in an engine that is given none.
DEFAULT_MAX_MODEL_LEN = 8192
# Where the user names none. Longer steps hardly run faster, and decodes would wait for them.
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048


def max_model_len(options: EngineOptions, model_length: int | None) -> int:
    """The longest sequence the engine serves, tokens of prompt and output together.

    Args:
        model_length: the longest that the model was made for; None: it does not say.
    """
    return options.max_model_len or model_length or DEFAULT_MAX_MODEL_LEN


def max_num_batched_tokens(options: EngineOptions, model_length: int | None) -> int:
    """The most tokens of a step; where prompts are not cut, any sequence must fit one."""
    if options.max_num_batched_tokens is not None:
        return options.max_num_batched_tokens
    longest = 0 if options.enable_chunked_prefill else max_model_len(options, model_length)
    return max(longest, options.max_num_seqs, DEFAULT_MAX_NUM_BATCHED_TOKENS)


def check_lengths(options: EngineOptions, model_length: int | None) -> None:
    """Refuse options that contradict each other or the model.

    Raises:
        OptionError: with all the contradictions.
    """
    findings = []
    longest, tokens = max_model_len(options, model_length), options.max_num_batched_tokens
    if model_length is not None and longest > model_length:
        findings.append(
            f"max_model_len={longest} is more than the {model_length} tokens the model was made "
            "for. Lower it, or leave it out to use them all."
        )
    if tokens is not None and tokens < options.max_num_seqs:
        findings.append(
            f"max_num_batched_tokens={tokens} must be at least max_num_seqs="
            f"{options.max_num_seqs}, so that every running sequence advances in every step. Raise "
            "the first or lower the second."
        )
    if tokens is not None and not options.enable_chunked_prefill and tokens < longest:
        findings.append(
            f"max_num_batched_tokens={tokens} is less than max_model_len={longest}: with "
            "enable_chunked_prefill=false a sequence runs in one step. Raise the first, lower the "
            "second, or leave chunked prefill on."
        )
    if findings:
        raise OptionError("\n".join(findings))
