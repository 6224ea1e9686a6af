"""The tokenizer that comes with an assembled model's checkpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from assembler.errors import TokenizerError
from assembler.loading import Assembly
from assembler.tokenizer import Tokenizer


def checkpoint_folder(assembly: Assembly) -> Path:
    """Where the checkpoint's other files are."""
    return assembly.path if assembly.path.is_dir() else assembly.path.parent


def checkpoint_tokenizer(assembly: Assembly) -> Tokenizer | None:
    """The checkpoint's tokenizer. Random weights do without where there is none."""
    index = assembly.index
    if index is not None and index.format == "gguf":
        return Tokenizer.from_gguf(index.metadata)
    folder = checkpoint_folder(assembly)
    if assembly.plan is not None:
        return Tokenizer.from_folder(folder)
    with suppress(TokenizerError):
        return Tokenizer.from_folder(folder)
    return None
