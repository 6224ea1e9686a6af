"""Decoding a sequence while it grows, token by token.

What is given out is final, and all of it together is what decoding the whole sequence at once
gives. `tokenizers.decoders.DecodeStream` promises less: it drops an unfinished end, and it raises
when byte tokens turn out not to be UTF-8.

Three things keep the newest text from being final:

* the bytes of a UTF-8 character may be spread over several tokens (an unfinished one decodes to
  U+FFFD, so a U+FFFD at the end waits for the next token);
* with byte fallback, tokens that are bytes wait until they are a character (see `byte_fallback`,
  also for broken UTF-8, the one case in which the library decodes otherwise);
* with `clean_up_spaces`, a space depends on the word after it (see `cleanup`).

Decoding everything again for each token would take quadratic time, so only a window is decoded: the
newest tokens, and before them the tokens of the step before as context, because decoders treat the
first token specially (SentencePiece drops its leading space).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tokenizers

from assembler.tokenizer.byte_fallback import ByteRun
from assembler.tokenizer.cleanup import SpaceCleaner

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Incremental decoder of one sequence."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        skip_ids: frozenset[int],
        byte_values: Mapping[int, int],
        clean_up_spaces: bool = False,
    ) -> None:
        """Made by `Tokenizer.detokenizer`.

        Args:
            backend: what decodes.
            skip_ids: tokens to leave out.
            byte_values: tokens that stand for one byte each (`byte_fallback_values`).
            clean_up_spaces: remove the spaces before punctuation (see `cleanup`).
        """
        self._backend = backend
        self._skip_ids = skip_ids
        self._byte_values = byte_values
        self._cleaner = SpaceCleaner() if clean_up_spaces else None
        self._window: list[int] = []
        self._context = 0  # how many tokens of the window are context
        self._given = 0  # how many characters of the window's text have been given out
        self._run = ByteRun()  # of the byte tokens at the end of the window

    def push(self, token_ids: int | Iterable[int]) -> str:
        """Add tokens; return the text that became final ("" if none did)."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        new = "".join([self._add(i) for i in ids if self._has_text(i)])
        end = len(self._window) - self._run.num_waiting
        text = self._decode(self._window[:end])
        final = text.removesuffix(_REPLACEMENT)
        new += final[self._given :]
        self._given = max(self._given, len(final))
        if end == len(self._window) and final == text:
            self._move_window()
        return new if self._cleaner is None else self._cleaner.push(new)

    def finish(self) -> str:
        """The sequence is complete: return the text still held back."""
        new = self._set_apart(self._run.num_waiting) if self._run.num_waiting else ""
        text = self._decode(self._window)
        new, self._given = new + text[self._given :], len(text)
        return new if self._cleaner is None else self._cleaner.push(new) + self._cleaner.finish()

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def _has_text(self, token_id: int) -> bool:
        """False for tokens that decoding passes over, as if they were not there."""
        return token_id not in self._skip_ids and self._backend.id_to_token(token_id) is not None

    def _add(self, token_id: int) -> str:
        """Add a token to the window; the text before bytes that turn out to be no character."""
        waiting = self._run.num_waiting
        byte = self._byte_values.get(token_id)
        new = ""
        if byte is not None:
            if not self._run.add(byte):
                new = self._set_apart(waiting)
        elif self._byte_values:
            new = self._set_apart(waiting) if waiting else ""
            self._run = ByteRun()
        self._window.append(token_id)
        return new

    def _set_apart(self, count: int) -> str:
        """Begin a window with the last `count` tokens; the text before them, which is final.

        They are no UTF-8. Decoded together with the bytes before them they would spoil these.
        """
        end = len(self._window) - count
        new = self._decode(self._window[:end])[self._given :]
        self._window = self._window[end:]
        self._context = self._given = 0
        return new

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
