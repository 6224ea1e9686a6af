"""The vocabulary part of a GGUF file's metadata, checked."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken

from assembler.errors import TokenizerError

SPACE = "\u2581"  # how SentencePiece writes a space


class TokenType(IntEnum):
    """What `tokenizer.ggml.token_type` says of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_SPECIAL = (TokenType.UNKNOWN, TokenType.CONTROL)
_TEXT = (TokenType.NORMAL, TokenType.USER_DEFINED)
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # the format spells it so
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Control tokens that end a turn, for the many files that name no eot_token_id.
_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|eom_id|>",
    "<end_of_utterance>",
    "<EOT>",
    "[EOT]",
)


class GgufVocabulary:
    """The `tokenizer.ggml.*` metadata, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens = [str(token) for token in self.get("tokens", ())]
        if not self.tokens:
            raise TokenizerError(
                "GGUF metadata: no tokenizer.ggml.tokens: the file has no tokenizer"
            )
        if self.get("model") == "llama":
            # Converters write tokens that are runs of spaces as they are, all others in
            # SentencePiece's spelling, which is what the normalised text has.
            self.tokens = [SPACE * len(t) if t.strip(" ") == "" else t for t in self.tokens]
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            twice = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
            raise TokenizerError(f"GGUF metadata: token {twice!r} is in the vocabulary twice")
        self.types = self._per_token("token_type", TokenType.NORMAL)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.<key>`."""
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def _per_token(self, key: str, default: Any) -> list[Any]:
        values = list(self.get(key, ())) or [default] * len(self.tokens)
        if len(values) != len(self.tokens):
            raise TokenizerError(
                f"GGUF metadata: tokenizer.ggml.{key} has {len(values)} values for "
                f"{len(self.tokens)} tokens"
            )
        return values

    def id_of(self, key: str) -> int | None:
        """The token id under `key`, None if the file names none."""
        token_id = self.get(key)
        if token_id is None:
            return None
        if not 0 <= token_id < len(self.tokens):
            raise TokenizerError(
                f"GGUF metadata: tokenizer.ggml.{key} is {token_id}, but the vocabulary has "
                f"{len(self.tokens)} tokens"
            )
        return int(token_id)

    def id_to_add(self, role: str, default: bool) -> int | None:
        """The id of the "bos" or "eos" token if every text gets it, else None."""
        flag, token_id = self.get(f"add_{role}_token"), self.id_of(f"{role}_token_id")
        if flag and token_id is None:
            raise TokenizerError(
                f"GGUF metadata: tokenizer.ggml.add_{role}_token is true, but there is no "
                f"tokenizer.ggml.{role}_token_id"
            )
        return token_id if (default if flag is None else flag) else None

    def roles(self) -> dict[str, str]:
        """Role -> text of the special tokens, e.g. "bos_token" -> "<s>"."""
        ids = {role: self.id_of(key) for role, key in _ROLES.items()}
        return {role: self.tokens[i] for role, i in ids.items() if i is not None}

    def special_tokens(self) -> list[AddedToken]:
        """The tokens that steer the model and are no text; found whole in any text."""
        ids = {i for i, kind in enumerate(self.types) if kind in _SPECIAL}
        ids |= {i for i in (self.id_of("bos_token_id"), *self.end_ids()) if i is not None}
        return [AddedToken(self.tokens[i], special=True, normalized=False) for i in sorted(ids)]

    def user_defined_tokens(self) -> list[AddedToken]:
        """The tokens with text that are found whole in any text.

        Runs of spaces are not among them: no text has `SPACE` before it is normalised.
        """
        special = {token.content for token in self.special_tokens()}
        return [
            AddedToken(token, normalized=False)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind == TokenType.USER_DEFINED and token.strip(SPACE) and token not in special
        ]

    def by_score(self) -> list[str]:
        """The tokens that text is made of, best first.

        User-defined ones come before all others: SentencePiece takes them whole, and the score that
        converters give them means nothing.
        """
        scores = self._per_token("scores", 0.0)
        made = [i for i, kind in enumerate(self.types) if kind in _TEXT]
        made.sort(key=lambda i: (self.types[i] != TokenType.USER_DEFINED, -scores[i]))
        return [self.tokens[i] for i in made]

    def end_ids(self) -> frozenset[int]:
        """Ids that end a generation: those the file names, else the control tokens known to."""
        ids = {self.id_of(key) for key in _END_KEYS}
        if self.get("eot_token_id") is None:
            found = (self.ids.get(token) for token in _END_OF_TURN)
            ids.update(i for i in found if i is not None and self.types[i] == TokenType.CONTROL)
        return frozenset(i for i in ids if i is not None)
