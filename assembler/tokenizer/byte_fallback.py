"""Tokens that stand for one byte each, `<0x00>` to `<0xFF>`, as Llama 2's tokenizer has them.

The `tokenizers` library turns a *run* of them into characters only if the whole run is UTF-8, and
into one U+FFFD a byte otherwise. So strictly no character is final before its run has ended: a
newline (`<0x0A>`) would be seen one token late, and an answer in bytes only at its end. Here a
character goes out when it is complete. A byte that is not UTF-8, or the end of a run within a
character, spoils what is left of the run and not what came before it: only such texts differ from
those of the library, in that more of them can be read.
"""

from __future__ import annotations

import codecs

import tokenizers


class ByteRun:
    """Follows the bytes of one run."""

    def __init__(self) -> None:
        """A run without bytes."""
        self.num_waiting = 0  # bytes at its end that are the beginning of a character
        self._is_spoilt = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def add(self, byte: int) -> bool:
        """Take the next byte; False if this one spoils the run, waiting bytes included."""
        if self._is_spoilt:
            return True
        try:
            self._decoder.decode(bytes([byte]))
        except UnicodeDecodeError:
            self._is_spoilt, self.num_waiting = True, 0
            return False
        self.num_waiting = len(self._decoder.getstate()[0])
        return True


def byte_fallback_values(backend: tokenizers.Tokenizer) -> dict[int, int]:
    """Token id -> byte, of the tokens that the decoder of `backend` reads as bytes."""
    decoder = backend.decoder
    if decoder is None or b'"ByteFallback"' not in decoder.__getstate__():
        return {}
    spellings = {f"<0x{byte:02{case}}>": byte for byte in range(256) for case in "Xx"}
    ids = {backend.token_to_id(spelling): byte for spelling, byte in spellings.items()}
    return {token_id: byte for token_id, byte in ids.items() if token_id is not None}
