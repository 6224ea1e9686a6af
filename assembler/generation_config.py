"""The sampling that a model's publisher recommends: generation_config.json of its folder."""

from __future__ import annotations

from pathlib import Path

from assembler.engine.sampling_params import SamplingParams
from assembler.errors import CheckpointError, OptionError
from assembler.tokenizer.folder import read_json

# Its name of a setting -> ours. As in vLLM, `do_sample` and the rest of the file have no say.
_SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def recommended_params(folder: Path) -> SamplingParams:
    """`SamplingParams` with what the file says; the usual defaults where it is silent or absent.

    Raises:
        CheckpointError: the file holds values that no request could have.
    """
    config = read_json(folder / "generation_config.json")
    values = {
        ours: config[theirs] for theirs, ours in _SETTINGS.items() if config.get(theirs) is not None
    }
    try:
        # A recommendation is cut to what fits; only a number that the user names must fit.
        return SamplingParams(**values).as_recommendation()
    except OptionError as error:
        raise CheckpointError(
            f"{folder / 'generation_config.json'}: {error}\nPass SamplingParams of your own, or "
            "correct the file."
        ) from None
