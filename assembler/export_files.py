"""What stands beside the weights in a model's folder: config, tokenizer, templates, licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assembler.errors import CheckpointError
from assembler.tokenizer.gguf import read_metadata
from assembler.tokenizer.write import write_folder

# Files of a model's folder that describe it or its tokenizer, and are copied as they are.
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",  # SentencePiece
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


def copy_files(source: Path, out: Path, config: Mapping[str, Any]) -> None:
    """Copy all but config.json and the weights; code too, where the config says there is some."""
    patterns = (*COPIED, "*.py") if config.get("auto_map") else COPIED
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                target = out / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def write_config(config: Mapping[str, Any], out: Path, dtype: str) -> None:
    """Write config.json, saying `dtype` wherever it says a type of weights."""
    config = dict(config)
    _set_dtype(config, dtype)
    config.pop("quantization_config", None)  # whatever was read, plain weights are written
    if isinstance(config.get("text_config"), Mapping):
        config["text_config"] = dict(config["text_config"])
        config["text_config"].pop("quantization_config", None)
        _set_dtype(config["text_config"], dtype)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """transformers 5 says `dtype`, others `torch_dtype`: set what is there, the new one if none."""
    for key in {"dtype", "torch_dtype"} & config.keys() or {"dtype"}:
        config[key] = dtype


def write_gguf_files(
    metadata: Mapping[str, Any], config: Mapping[str, Any], out: Path, dtype: str
) -> None:
    """Write what a GGUF file says in its metadata as the files of a folder.

    Args:
        metadata: of the file.
        config: the same, translated to the terms of config.json.

    Raises:
        CheckpointError: the translated config does not say what model it is.
        TokenizerError: the metadata hold no tokenizer, or one that is not understood.
    """
    for field in ("architectures", "model_type"):
        if field not in config:
            raise CheckpointError(
                f"config.json needs '{field}', which the weight map of this GGUF file does not give"
            )
    full = {**with_both_rope_dialects(config), "dtype": dtype, "torch_dtype": dtype}
    write_config(full, out, dtype)
    parts = read_metadata(metadata)
    write_folder(parts, out, model_max_length=config.get("max_position_embeddings"))
    ids: dict[str, Any] = {
        key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config
    }
    ends = sorted(parts.eos_token_ids)
    if ends:
        ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    (out / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", "utf-8")


def with_both_rope_dialects(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` repeated as `rope_parameters`.

    transformers 5 writes only the latter, and other loaders read only the former.
    """
    config = dict(config)
    if "rope_theta" in config:
        settings = {"rope_type": "default", **(config.get("rope_scaling") or {})}
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in config:
                settings[key] = config[key]
        config.setdefault("rope_parameters", settings)
    return config
