"""The tokenizer that comes with an assembled model's checkpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from assembler.errors import TokenizerError
from assembler.loading import Assembly
from assembler.tokenizer import Tokenizer
from assembler.tokenizer.folder import lacks_tokenizer


def checkpoint_folder(assembly: Assembly) -> Path:
    """Where the checkpoint's other files are."""
    return assembly.path if assembly.path.is_dir() else assembly.path.parent


def checkpoint_tokenizer(assembly: Assembly) -> Tokenizer | None:
    """The checkpoint's tokenizer; None where it has none that can be read: prompts are token ids.

    Raises:
        TokenizerError: it is damaged. Random weights do without it.
    """
    index = assembly.index
    if index is not None and index.format == "gguf":
        return Tokenizer.from_gguf(index.metadata)
    folder = checkpoint_folder(assembly)
    if assembly.plan is not None:
        return None if lacks_tokenizer(folder) else Tokenizer.from_folder(folder)
    with suppress(TokenizerError):
        return Tokenizer.from_folder(folder)
    return None
