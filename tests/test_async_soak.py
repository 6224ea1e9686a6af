"""Hundreds of requests to an `AsyncLLM`, most of which are given up: nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from pathlib import Path

import pytest
from engine_gate import engine_of, finished
from tiny_llama import save_llama

from assembler import AsyncLLM, SamplingParams

PAGE_BYTES = 2 * 4 * 2 * 8 * 4 * 3  # keys, values; 4 tokens; 2 heads of 8; float32; 3 layers


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def use(llm: AsyncLLM, rng: random.Random, number: int) -> str:
    """One request, and how it went."""
    prompt = [rng.randrange(250) for _ in range(rng.randint(1, 40))]
    params = SamplingParams(max_tokens=rng.randint(1, 40), n=rng.choice([1, 1, 2]), logprobs=1)
    way = rng.choice(["served", "left", "cancelled", "aborted"])
    if way == "left":
        async for output in llm.stream(prompt, params):
            if len(output.outputs[0].token_ids) >= params.max_tokens // 2:
                break
        return way
    text = "".join(map(chr, prompt)) if number % 2 else prompt
    call = asyncio.create_task(llm.generate(text, params, request_id=str(number)))
    for _ in range(0 if way == "served" else rng.randrange(30)):
        await asyncio.sleep(0)
    if way == "cancelled":
        call.cancel()
    if way == "aborted":
        await llm.abort(str(number))
    try:
        output = await call
    except asyncio.CancelledError:
        return way
    assert output.finished and output.error is None and len(output.outputs) == params.n
    return output.outputs[0].finish_reason


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_requests_that_are_given_up_leave_nothing_behind(tmp_path: Path):
    save_llama(tmp_path)
    rng = random.Random(1)
    ways: dict[str, int] = {}

    async def worker(llm: AsyncLLM, numbers: range) -> None:
        for number in numbers:
            way = await use(llm, rng, number)
            ways[way] = ways.get(way, 0) + 1

    async def wave(llm: AsyncLLM, numbers: range) -> None:
        await asyncio.gather(*(worker(llm, numbers[n::12]) for n in range(12)))
        await finished(llm)
        engine_of(llm).check_integrity()
        assert not llm._thread._mailboxes and not llm._to_be_aborted

    async def main() -> None:
        cache = {"page_size": 4, "kv_cache_memory_bytes": 60 * PAGE_BYTES}
        async with AsyncLLM(tmp_path, max_num_seqs=8, max_num_batched_tokens=40, **cache) as llm:
            await wave(llm, range(100))
            early = resident_bytes()
            await wave(llm, range(100, 300))
            assert resident_bytes() - early < 4 << 20
            assert llm.stats.num_preemptions > 0

    asyncio.run(main())
    assert sum(ways.values()) == 300
    assert min(ways.get(way, 0) for way in ("left", "cancelled", "abort", "length")) > 10, ways
