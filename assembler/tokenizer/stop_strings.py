"""Cutting generated text at the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from assembler.errors import OptionError


class StopStrings:
    """Watches the text of one sequence for stop strings, also across the borders of its pieces.

    Text that may turn out to be the beginning of a stop string is held back until that is decided,
    so nothing of a stop string ever gets out. The result does not depend on how the text is cut
    into pieces: the stop string completed first ends the text (the longest, if several are
    completed by the same character).
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """Watch for `stops`; with `include`, the one that ends the text is a part of it."""
        if isinstance(stops, str) or not all(isinstance(s, str) and s for s in stops):
            raise OptionError(f"stop strings must be a list of non-empty strings, not {stops!r}")
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self.matched is not None

    def push(self, text: str, may_stop: bool = True) -> tuple[str, bool]:
        """Return (text that may go out, whether a stop string was met); after that, nothing.

        Args:
            may_stop: False: stop strings that `text` completes are text like any other.
        """
        if self.stopped:
            return "", True
        held = len(self._held)
        self._held += text
        match = self._first_match(completed_after=held) if may_stop else None
        if match is not None:
            start, self.matched = match
            end = start + len(self.matched) if self._include else start
            out, self._held = self._held[:end], ""
            return out, True
        cut = len(self._held) - self._undecided()
        out, self._held = self._held[:cut], self._held[cut:]
        return out, False

    def finish(self) -> str:
        """Return the text still held back: the sequence ended, so it begins no stop string."""
        out, self._held = self._held, ""
        return out

    def _first_match(self, completed_after: int) -> tuple[int, str] | None:
        """Where the stop string that is completed first begins in the held text, and which it is.

        Those that end within the first `completed_after` characters were let pass.
        """
        ends = []
        for stop in self._stops:
            start = self._held.find(stop, max(0, completed_after + 1 - len(stop)))
            if start >= 0:
                ends.append((start + len(stop), start, stop))
        return min(ends)[1:] if ends else None

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
