"""`Tokenizer`: text to token ids and back, for one model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from assembler.errors import RequestError, TokenizerError
from assembler.tokenizer.byte_fallback import byte_fallback_values
from assembler.tokenizer.chat_template import ChatTemplate
from assembler.tokenizer.cleanup import clean_up_spaces
from assembler.tokenizer.detokenizer import Detokenizer
from assembler.tokenizer.folder import read_folder
from assembler.tokenizer.gguf import read_metadata
from assembler.tokenizer.parts import TokenizerParts


class Tokenizer:
    """The tokenizer of one model, with its special tokens and its chat template.

    Ids and text are those of transformers' `AutoTokenizer` on the same files. Instances are
    immutable and may be shared between threads.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self.backend: tokenizers.Tokenizer = parts.backend
        self.special_tokens: Mapping[str, str] = parts.special_tokens
        self.eos_token_ids: frozenset[int] = parts.eos_token_ids
        self.clean_up_spaces: bool = parts.clean_up_spaces
        self._chat_template = ChatTemplate(parts.chat_templates, parts.special_tokens)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a checkpoint folder.

        Reads tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json,
        added_tokens.json, generation_config.json, config.json (for the end-of-sequence ids) and
        the chat template (chat_template.jinja, additional_chat_templates/*.jinja,
        chat_template.json).

        Raises:
            TokenizerError: the folder holds no tokenizer.json, or a file is damaged.
        """
        return cls(read_folder(Path(folder)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build the tokenizer that the metadata of a GGUF file describes (`tokenizer.*` keys).

        Raises:
            TokenizerError: a key is missing, or the tokenizer or its pre-tokenizer is unknown.
        """
        return cls(read_metadata(metadata))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included (the model's embedding may have more rows)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that `skip_special_tokens` leaves out of decoded text."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def _byte_values(self) -> dict[int, int]:
        return byte_fallback_values(self.backend)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token, None if the model has none."""
        return self._id_of("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the tokenizer's own end of sequence; `eos_token_ids` may hold more than that."""
        return self._id_of("eos_token")

    def _id_of(self, role: str) -> int | None:
        text = self.special_tokens.get(role)
        return None if text is None else self.backend.token_to_id(text)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`.

        Special tokens written in the text become their ids either way; `add_special_tokens` adds
        those the model wants around every text (a beginning of sequence, say). Text made by a chat
        template holds them already: use `encode_chat`, or pass False.

        Raises:
            RequestError: `text` is not a string of Unicode characters.
        """
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            raise RequestError(_why_not_text(text)) from None

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`. Ids without a token (padding rows of the embedding) give no text.

        Bytes that are not UTF-8 become U+FFFD.
        """
        try:
            text = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except OverflowError:
            wrong = next(i for i in token_ids if not 0 <= i < 2**32)
            raise RequestError(f"{wrong} is not a token id") from None
        return clean_up_spaces(text) if self.clean_up_spaces else text

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        """A new incremental decoder for one sequence."""
        return Detokenizer(
            self.backend,
            skip_ids=self.special_ids if skip_special_tokens else frozenset(),
            byte_values=self._byte_values,
            clean_up_spaces=self.clean_up_spaces,
        )

    @property
    def has_chat_template(self) -> bool:
        """True when the model says how a conversation is written as text."""
        return bool(self._chat_template.names)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The text of a conversation; see `ChatTemplate.render` for `kwargs`.

        Raises:
            TokenizerError: the model has no chat template, or a broken one.
            RequestError: the messages are malformed or the template refuses them.
        """
        if not self.has_chat_template and kwargs.get("chat_template") is None:
            raise TokenizerError(
                "the model has no chat template: send plain text, pass chat_template=SOURCE, or "
                "add a chat_template.jinja to its folder"
            )
        return self._chat_template.render(messages, add_generation_prompt, **kwargs)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation: `apply_chat_template`, encoded without adding tokens."""
        text = self.apply_chat_template(messages, add_generation_prompt, **kwargs)
        return self.encode(text, add_special_tokens=False)


def _why_not_text(text: object) -> str:
    """Why the `tokenizers` library refuses `text`."""
    if not isinstance(text, str):
        return f"the text to encode is a {type(text).__name__}, not a str"
    position = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return (
        f"the text to encode holds half a surrogate pair (U+{ord(text[position]):04X}) at "
        f"character {position}, which is not a Unicode character"
    )
