"""Decoding a sequence while it grows, token by token.

What is given out is final, and all of it together is what decoding the whole sequence at once
gives. `tokenizers.decoders.DecodeStream` promises less: it drops an unfinished end, and it raises
when byte tokens turn out not to be UTF-8.

Three things keep the newest text from being final:

* the bytes of a UTF-8 character may be spread over several tokens (an unfinished one decodes to
  U+FFFD, so a U+FFFD at the end waits for the next token);
* a decoder with byte fallback turns a *run* of byte tokens into characters only if the whole run is
  UTF-8, and into U+FFFD otherwise, so a run at the end waits for its end;
* with `clean_up_spaces`, a space depends on the word after it (see `cleanup`).

Decoding everything again for each token would take quadratic time, so only a window is decoded: the
newest tokens, and before them the tokens of the step before as context, because decoders treat the
first token specially (SentencePiece drops its leading space).
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers

from assembler.tokenizer.cleanup import SpaceCleaner

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Incremental decoder of one sequence."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        skip_ids: frozenset[int],
        byte_ids: frozenset[int],
        clean_up_spaces: bool = False,
    ) -> None:
        """Made by `Tokenizer.detokenizer`.

        Args:
            backend: what decodes.
            skip_ids: tokens to leave out.
            byte_ids: tokens that stand for one byte each (`byte_fallback_ids`).
            clean_up_spaces: remove the spaces before punctuation (see `cleanup`).
        """
        self._backend = backend
        self._skip_ids = skip_ids
        self._byte_ids = byte_ids
        self._cleaner = SpaceCleaner() if clean_up_spaces else None
        self._window: list[int] = []
        self._context = 0  # how many tokens of the window are context
        self._given = 0  # how many characters of the window's text have been given out

    def push(self, token_ids: int | Iterable[int]) -> str:
        """Add tokens; return the text that became final ("" if none did)."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        self._window.extend(i for i in ids if self._has_text(i))
        end = self._end_of_complete_tokens()
        text = self._decode(self._window[:end])
        final = text.removesuffix(_REPLACEMENT)
        new = final[self._given :]
        self._given = max(self._given, len(final))
        if end == len(self._window) and final == text:
            self._move_window()
        return new if self._cleaner is None else self._cleaner.push(new)

    def finish(self) -> str:
        """The sequence is complete: return the text still held back."""
        text = self._decode(self._window)
        new, self._given = text[self._given :], len(text)
        return new if self._cleaner is None else self._cleaner.push(new) + self._cleaner.finish()

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def _has_text(self, token_id: int) -> bool:
        """False for tokens that decoding passes over, as if they were not there."""
        return token_id not in self._skip_ids and self._backend.id_to_token(token_id) is not None

    def _end_of_complete_tokens(self) -> int:
        """Length of the window without the byte tokens at its end."""
        end = len(self._window)
        while end > self._context and self._window[end - 1] in self._byte_ids:
            end -= 1
        return end

    def _move_window(self) -> None:
        """Everything in the window is final: keep its newest tokens as context for the next ones.

        A context without text would not do: the token after it would be treated as the first one.
        """
        context = self._window[self._context :]
        text = self._decode(context)
        if text:
            self._window = context
            self._context = len(context)
            self._given = len(text)


def byte_fallback_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Ids of the tokens `<0x00>` to `<0xFF>`, if the decoder reads them as bytes."""
    decoder = backend.decoder
    if decoder is None or b'"ByteFallback"' not in decoder.__getstate__():
        return frozenset()
    spellings = (f"<0x{byte:02{case}}>" for byte in range(256) for case in "Xx")
    ids = (backend.token_to_id(spelling) for spelling in spellings)
    return frozenset(token_id for token_id in ids if token_id is not None)
