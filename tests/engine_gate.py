"""The engine of an `AsyncLLM`, held up where a test wants it."""

from __future__ import annotations

import asyncio
import threading

from assembler import AsyncLLM, LLMEngine, RequestOutput


def engine_of(llm: AsyncLLM) -> LLMEngine:
    return llm._llm.engine


class Gate:
    """Keeps an engine in a step until it is opened."""

    def __init__(self, engine: LLMEngine) -> None:
        self._entered, self._opened, self._step = threading.Event(), threading.Event(), engine.step
        engine.step = self.step
        self.open = self._opened.set

    def step(self) -> list[RequestOutput]:
        self._entered.set()
        self._opened.wait()
        return self._step()

    async def entered(self) -> None:
        """The engine has requests, and stands in a step."""
        await asyncio.to_thread(self._entered.wait)


async def finished(llm: AsyncLLM) -> None:
    while not engine_of(llm).is_finished():
        await asyncio.sleep(0)
