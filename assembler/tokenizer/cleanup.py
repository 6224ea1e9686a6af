"""Removal of the spaces that word-level tokenizers put before punctuation.

Only tokenizers other than BPE whose tokenizer_config.json says `clean_up_tokenization_spaces: true`
use it; the substitutions and their order are those of transformers.
"""

from __future__ import annotations

_SUBSTITUTIONS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up_spaces(text: str) -> str:
    """`text` without the spaces before punctuation and contractions."""
    for spaced, joined in _SUBSTITUTIONS:
        text = text.replace(spaced, joined)
    return text


class SpaceCleaner:
    """`clean_up_spaces` over text that arrives in pieces: holds back about one word."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Return the cleaned text that no later piece can change."""
        self._held += text
        cut = self._last_cut()
        done, self._held = self._held[:cut], self._held[cut:]
        return clean_up_spaces(done)

    def finish(self) -> str:
        """Return what is held back."""
        done, self._held = self._held, ""
        return clean_up_spaces(done)

    def _last_cut(self) -> int:
        """Position of the last space that no substitution can reach across, 0 if there is none.

        Every pattern begins with a space and only " ' " has another one, so text may be cut before
        a space unless it follows an apostrophe (or a space, which a substitution may remove).
        """
        for position in range(len(self._held) - 1, 0, -1):
            if self._held[position] == " " and self._held[position - 1] not in " '":
                return position
        return 0
