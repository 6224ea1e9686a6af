"""Ctrl-C at a time when it does no harm."""

from __future__ import annotations

import signal
import threading
from typing import Any

try:
    # Those of `signal` turn handlers into enum members, which fails for most and is caught: ten
    # times what the rest of the guard takes, in every step.
    from _signal import getsignal as _get_handler
    from _signal import signal as _set_handler
except ImportError:  # a Python that is written otherwise
    _get_handler, _set_handler = signal.getsignal, signal.signal


class held_back_interrupt:  # named as the context managers of contextlib are
    """Hold the first Ctrl-C back until the block is done; a second one interrupts it.

    Only the main thread is interrupted by one. A block within a block leaves it to the outer one.
    """

    def __init__(self) -> None:
        self._before: Any = None  # the handler before this one; None: it is left in place
        self._caught = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        before = _get_handler(signal.SIGINT)
        if before not in (None, signal.SIG_IGN) and not isinstance(before, held_back_interrupt):
            self._before = before
            _set_handler(signal.SIGINT, self)

    def __call__(self, number: int, frame: Any) -> None:
        """Handle the signal: note it, and leave the next one to the handler before."""
        self._caught = True
        _set_handler(signal.SIGINT, self._before)

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            _set_handler(signal.SIGINT, self._before)
        if self._caught and error[0] is None:
            signal.raise_signal(signal.SIGINT)
