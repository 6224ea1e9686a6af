"""`checkpoint=tiny`: a random model of the same make as a real one, small enough to run at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from assembler.errors import CheckpointError, OptionError, did_you_mean
from assembler.verifying.ids import random_ids
from assembler.verifying.random_weights import randomise
from assembler.verifying.reference import Reference, model_class, quiet, require_transformers
from assembler.verifying.shrink import enlivened, shrunk

_SEED = 0


def write_tiny(
    folder: Path,
    *,
    config: Path | None = None,
    model_type: str | None = None,
    trust_remote_code: bool = False,
) -> Reference:
    """Save a tiny random model as its hub repository would be, and return it.

    Args:
        folder: gets config.json and model.safetensors.
        config: a config.json, or the folder that holds it, of the model to make small.
        model_type: instead of `config`, the type whose default config is made small.

    Raises:
        OptionError: neither or both are given, or transformers does not know the type.
        CheckpointError: no model can be made of the small config.
    """
    transformers = require_transformers()
    with quiet(transformers):
        full = _config(transformers, config, model_type, trust_remote_code)
        small = _shrunk_config(full, enliven=config is None)
    torch.manual_seed(_SEED)
    try:
        with quiet(transformers):
            kind = model_class(transformers, small)
            if hasattr(kind, "from_config"):
                made = kind.from_config(small, trust_remote_code=trust_remote_code)
            else:
                made = kind(small)
            model = made.float().eval()
            reference = Reference(model)
            ids = random_ids(reference.vocab_size, 2, 23, small.to_dict())
            randomise(model, _SEED, lambda model: Reference(model).logits(ids))
            model.save_pretrained(folder)
    except Exception as error:  # of any type: it is another program's
        reason = next(iter(str(error).splitlines()), "")
        raise CheckpointError(
            f"no tiny model of '{full.model_type}' can be made: {type(error).__name__}: {reason} "
            "(a tiny checkpoint that you save yourself is compared like any other: checkpoint=DIR)"
        ) from error
    return reference


def _config(transformers: Any, path: Path | None, model_type: str | None, trusted: bool) -> Any:
    if (path is None) == (model_type is None):
        raise OptionError(
            "checkpoint=tiny makes a model of a config: pass config=path/to/config.json or "
            "model_type=NAME, one of them"
        )
    if path is None:
        known = list(transformers.models.auto.configuration_auto.CONFIG_MAPPING)
        if model_type not in known:
            hint = did_you_mean(str(model_type), known)
            raise OptionError(
                f"model_type={model_type}: transformers has no such type.{hint} One that comes "
                "with code of its own: config=path/to/config.json trust_remote_code=true"
            )
        return transformers.AutoConfig.for_model(model_type)
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"config={path}: cannot be read: {error}") from None
    if not isinstance(fields, dict) or not fields.get("model_type"):
        raise OptionError(f"config={path}: names no model_type, so transformers cannot make it")
    try:
        source = file.parent if file.name == "config.json" else file
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    except Exception as error:  # of any type: it is another program's
        reason = next(iter(str(error).splitlines()), "")
        raise OptionError(f"config={path}: transformers refuses it: {reason}") from error


def _shrunk_config(full: Any, *, enliven: bool) -> Any:
    """The text config made small; of a multimodal config the text part alone."""
    text = full.get_text_config()
    fields = shrunk(text.to_dict())
    if enliven:
        fields |= enlivened(fields)
    for name in ("architectures", "transformers_version", "dtype", "_name_or_path"):
        fields.pop(name, None)
    try:
        small = type(text)(**fields)
    except Exception as error:  # of any type: it is another program's
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the config of '{full.model_type}' cannot be made small: {reason}"
        ) from error
    small._attn_implementation = "eager"
    small._name_or_path = full._name_or_path  # where a checkpoint's own code is
    return small
