"""Reading the tokenizer files of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from assembler.errors import TokenizerError
from assembler.tokenizer.parts import TokenizerParts

# Tokenizer files in formats that need converting, and what they are.
_OTHER_FORMATS = {
    "tokenizer.model": "a SentencePiece model",
    "spiece.model": "a SentencePiece model",
    "sentencepiece.bpe.model": "a SentencePiece model",
    "tekken.json": "a Tekken vocabulary",
    "*.tiktoken": "a tiktoken vocabulary",
    "tiktoken.model": "a tiktoken vocabulary",
    "vocab.json": "a bare vocabulary",
    "vocab.txt": "a bare vocabulary",
}


def read_folder(folder: Path) -> TokenizerParts:
    """The tokenizer of `folder`, put together as transformers 5 does it.

    Raises:
        TokenizerError: there is no tokenizer.json, or a file is damaged.
    """
    backend = _read_backend(folder)
    config = _read_config(folder)
    try:
        special_tokens, extra = _special_tokens(config)
        _add_tokens(backend, config, special_tokens, extra)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: a token is not written as expected: {error!r}"
        ) from error
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    is_bpe = isinstance(backend.model, tokenizers.models.BPE)
    return TokenizerParts(
        backend=backend,
        special_tokens=special_tokens,
        eos_token_ids=_eos_token_ids(folder, backend, special_tokens),
        chat_templates=_chat_templates(folder, config),
        # The substitutions would damage BPE text, so transformers ignores the flag there.
        clean_up_spaces=bool(config.get("clean_up_tokenization_spaces", False)) and not is_bpe,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 text: {error}") from error


def _read_backend(folder: Path) -> tokenizers.Tokenizer:
    if lacking := lacks_tokenizer(folder):
        raise TokenizerError(lacking)
    path = folder / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise TokenizerError(f"{path}: not a readable tokenizer: {error}") from error
    backend.no_truncation()  # left behind by training scripts; a prompt is never cut or padded
    backend.no_padding()
    return backend


def _read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed from the files that once held part of it."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(folder / "special_tokens_map.json")
        config["added_tokens"] = read_json(folder / "added_tokens.json")
    return config


def lacks_tokenizer(folder: Path) -> str:
    """Why `folder` has no tokenizer that is read, and what to do; "" if it has a tokenizer.json."""
    if (folder / "tokenizer.json").is_file():
        return ""
    if not folder.is_dir():
        return f"{folder}: no such folder"
    names = sorted(entry.name for entry in folder.iterdir())
    for pattern, what in _OTHER_FORMATS.items():
        if found := sorted(folder.glob(pattern)):
            return (
                f"{folder}: no tokenizer.json, only {found[0].name} ({what}). Convert it once, "
                'where transformers is installed: python -c "from transformers import '
                f"AutoTokenizer as A; A.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
    listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
    return f"{folder}: no tokenizer.json (found {listing}). Copy it from the original model"


def _text(token: str | Mapping[str, Any]) -> str:
    """The text of a token as the JSON files write it: a string or an AddedToken object."""
    return token if isinstance(token, str) else str(token["content"])


def _special_tokens(config: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The special tokens that have a role (role -> text), and the texts of the others."""
    named = {
        role: _text(token)
        for role, token in config.items()
        if role.endswith("_token") and isinstance(token, (str, dict))
    }
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    if isinstance(extra, dict):  # e.g. {"image_token": "<image>"}
        return named | {role: _text(token) for role, token in extra.items()}, []
    return named, [_text(token) for token in extra]


def _add_tokens(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    special_tokens: Mapping[str, str],
    extra: list[str],
) -> None:
    """Add the tokens that the other files declare and tokenizer.json lacks (or has otherwise)."""
    present = {repr(t): t.content for t in backend.get_added_tokens_decoder().values()}
    declared = [t for t in _declared_tokens(config) if repr(t) not in present]
    known = {*present.values(), *(token.content for token in declared)}
    special = dict.fromkeys([*special_tokens.values(), *extra])
    by_id = sorted(config.get("added_tokens", {}).items(), key=lambda item: item[1])
    for text in dict.fromkeys([*(text for text, _ in by_id), *special]):
        if text not in known:
            declared.append(AddedToken(text, special=text in special))
    for token in declared:
        token.special = token.special or token.content in special_tokens.values()
    backend.add_tokens(declared)


def _declared_tokens(config: Mapping[str, Any]) -> Iterator[AddedToken]:
    """The AddedToken objects of tokenizer_config.json, in the order of their ids."""
    by_id = config.get("added_tokens_decoder", {})
    for _, fields in sorted(by_id.items(), key=lambda item: int(item[0])):
        yield AddedToken(**{k: v for k, v in fields.items() if k != "__type"})


def _eos_token_ids(
    folder: Path, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]
) -> frozenset[int]:
    """The tokenizer's end of sequence and those generation_config.json (else config.json) lists."""
    ids = set()
    if "eos_token" in special_tokens:
        ids.add(backend.token_to_id(special_tokens["eos_token"]))
    for name in ("generation_config.json", "config.json"):
        config = read_json(folder / name)
        text_config = config.get("text_config") or {}  # where a multimodal model nests it
        listed = config.get("eos_token_id", text_config.get("eos_token_id"))
        if listed is not None:
            ids.update(listed if isinstance(listed, list) else [listed])
            break
    return frozenset(ids)


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> source. The .jinja files replace what tokenizer_config.json says."""
    files = {path.stem: path for path in folder.glob("additional_chat_templates/*.jinja")}
    if (main := folder / "chat_template.jinja").is_file():
        files["default"] = main
    if files:
        return {name: _read_text(path) for name, path in files.items()}
    processor = read_json(folder / "chat_template.json")
    template = config.get("chat_template") or processor.get("chat_template") or {}
    if isinstance(template, str):
        return {"default": template}
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if not all(isinstance(text, str) for text in [*template, *template.values()]):
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: chat_template is neither a text nor a list of "
            "{name, template} objects"
        )
    return template
