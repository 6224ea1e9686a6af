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
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc="Generating", unit="req", disable=not enabled)
        self._stats = stats
        self._before = replace(stats)
        self._shown_at = time.perf_counter()

    def __enter__(self) -> GenerationBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._show_speed()
        self.bar.close()

    def show(self, num_finished: int) -> None:
        """Show how many requests have finished, and at times how fast it goes."""
        if self.bar.disable:
            return
        self.bar.update(num_finished - self.bar.n)
        if time.perf_counter() - self._shown_at >= _REFRESH_SECONDS:
            self._show_speed()

    def _show_speed(self) -> None:
        """Tokens a second since the last time, in the steps that ran such tokens."""
        if self.bar.disable:
            return
        before, now = self._before, self._stats
        phases = {
            "prefill": (
                now.num_prefill_tokens - before.num_prefill_tokens,
                now.prefill_time - before.prefill_time,
            ),
            "decode": (
                now.num_decode_tokens - before.num_decode_tokens,
                now.decode_time - before.decode_time,
            ),
        }
        speeds = [
            f"{name} {tokens / seconds:.0f} tok/s"
            for name, (tokens, seconds) in phases.items()
            if seconds > 0
        ]
        if speeds:
            self.bar.set_postfix_str(", ".join(speeds), refresh=True)
        self._before, self._shown_at = replace(now), time.perf_counter()
