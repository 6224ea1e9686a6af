"""Ctrl-C at a time when it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _HoldBack:
    """A handler of SIGINT that notes the first one; the next one is for the handler before it."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.caught = False

    def __call__(self, number: int, frame: Any) -> None:
        self.caught = True
        signal.signal(signal.SIGINT, self.before)


@contextmanager
def held_back_interrupt() -> Iterator[None]:
    """Hold the first Ctrl-C back until the block is done; a second one interrupts it.

    Only the main thread is interrupted by one. A block within a block leaves it to the outer one.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (None, signal.SIG_IGN) or isinstance(before, _HoldBack):
        yield
        return
    holding = _HoldBack(before)
    signal.signal(signal.SIGINT, holding)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if holding.caught:
        signal.raise_signal(signal.SIGINT)
