"""Progress bars on stderr: while weights are read, and while requests are served."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assembler.engine.outputs import RequestOutput


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
    """A tqdm bar over requests, with throughput; silent when switched off."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc="Generating", unit="req", disable=not enabled)
        self.tokens = 0

    def __enter__(self) -> GenerationBar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, output: RequestOutput) -> None:
        self.tokens += sum(len(completion.token_ids) for completion in output.outputs)
        rate = self.tokens / max(self.bar.format_dict["elapsed"], 1e-9)
        self.bar.set_postfix_str(f"{rate:.1f} tok/s", refresh=False)
        self.bar.update()
