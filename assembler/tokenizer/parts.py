"""What a tokenizer is made of, whichever kind of file it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True)
class TokenizerParts:
    """The output of the readers (`folder.read_folder`, `gguf.read_metadata`)."""

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]  # role -> text, e.g. "bos_token" -> "<s>"
    eos_token_ids: frozenset[int]  # ids that end a generation
    chat_templates: Mapping[str, str]  # name -> Jinja source; empty when there is none
    clean_up_spaces: bool = False  # decoded text goes through `cleanup.clean_up_spaces`
