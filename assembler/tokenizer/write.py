"""Writing a tokenizer as the files of a checkpoint folder, from which `AutoTokenizer` loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from assembler.tokenizer.parts import TokenizerParts


def write_folder(
    parts: TokenizerParts, folder: Path, *, model_max_length: int | None = None
) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates into `folder`.

    Args:
        model_max_length: the tokens that the model was made for, a field of tokenizer_config.json.
    """
    parts.backend.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the class that takes tokenizer.json as is
        **parts.special_tokens,
        "added_tokens_decoder": _added_tokens(parts),
        "clean_up_tokenization_spaces": parts.clean_up_spaces,
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(f"{text}\n", "utf-8")
    for name, template in parts.chat_templates.items():
        file = folder / "chat_template.jinja"
        if name != "default":
            file = folder / "additional_chat_templates" / f"{name}.jinja"
            file.parent.mkdir(exist_ok=True)
        file.write_text(template, "utf-8")


def _added_tokens(parts: TokenizerParts) -> dict[str, dict[str, Any]]:
    """Id -> AddedToken, as tokenizer_config.json repeats them."""
    added = sorted(parts.backend.get_added_tokens_decoder().items())
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {str(i): {flag: getattr(token, flag) for flag in flags} for i, token in added}
