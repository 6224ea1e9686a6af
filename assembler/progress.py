"""Progress bars on stderr: while weights are read, and while requests are served."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assembler.engine.stats import EngineStats

_REFRESH_SECONDS = 0.5


@contextmanager
def bytes_bar(what: str = "Loading") -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes of a checkpoint, where a person watches; yields what moves it."""
    from tqdm import tqdm

    bar = tqdm(desc=what, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty())

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield progress


class GenerationBar:
    """A tqdm bar over requests, with the speed of prefill and decode; silent when switched off."""

    def __init__(self, total: int, stats: EngineStats, *, enabled: bool) -> None:
        """`stats`: those of the engine that serves the requests, which changes them as it goes."""
        self._bar = None
        if enabled:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc="Generating", unit="req")
        self._stats = stats
        self._at_start = self._before = replace(stats)
        self._shown_at = time.perf_counter()

    def __enter__(self) -> GenerationBar:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the speed of the whole run."""
        if self._bar is not None:
            self._show_speed(self._at_start)
            self._bar.close()

    def show(self, num_finished: int) -> None:
        """Show how many requests have finished, and at times how fast it goes right now."""
        if self._bar is None:
            return
        self._bar.update(num_finished - self._bar.n)
        if time.perf_counter() - self._shown_at >= _REFRESH_SECONDS:
            self._show_speed(self._before)
            self._before, self._shown_at = replace(self._stats), time.perf_counter()

    def _show_speed(self, since: EngineStats) -> None:
        """Tokens a second since then, of the time that steps took for such tokens."""
        assert self._bar is not None
        now = self._stats
        phases = {
            "prefill": (
                now.num_prefill_tokens - since.num_prefill_tokens,
                now.prefill_time - since.prefill_time,
            ),
            "decode": (
                now.num_decode_tokens - since.num_decode_tokens,
                now.decode_time - since.decode_time,
            ),
        }
        speeds = [
            f"{name} {tokens / seconds:.0f} tok/s"
            for name, (tokens, seconds) in phases.items()
            if seconds > 0
        ]
        if speeds:
            self._bar.set_postfix_str(", ".join(speeds), refresh=True)
