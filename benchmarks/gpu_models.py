"""Whole models with random weights at real shapes: one sequence, many, and where the time goes."""

from __future__ import annotations

import gc
import random
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_configs import REAL, TINY, write_config
from gpu_timing import FAILED, Clock, Result
from gpu_transformers import Shapes, transformers_seconds
from torch.autograd import DeviceType

from assembler import LLM, SamplingParams
from assembler.engine.kv_cache import bytes_per_page, cache_specs
from assembler.kernels.cost import Roof

SINGLE_TARGET = {"qwen3-0.6b": 0.50, "qwen3-8b": 0.85}
THROUGHPUT_TARGET = 0.60
BUSY_TARGET = 0.90  # of a step of decodes the device may wait for the host for a tenth
AHEAD_OF_TRANSFORMERS = 3.0


def model_rows(clock: Clock, roof: Roof | None, names: list[str]) -> Iterator[Result]:
    """Rows of each model; a part that fails is a row that says so, and the others go on."""
    for name in ["qwen3"] if clock.smoke else names:
        config = TINY[name] if clock.smoke else REAL[name]
        with tempfile.TemporaryDirectory() as folder:
            file = write_config(Path(folder), config)
            try:
                yield from _rows(clock, roof, name, file)
            except Exception as error:
                traceback.print_exc()
                yield Result("model", name, note=f"{FAILED}: {type(error).__name__}: {error}")
            _free()


def nano_vllm_requests(count: int = 256, longest: int = 1024) -> Shapes:
    """The requests of nano-vllm's `bench.py`, from its seed and in its order of draws."""
    draws = random.Random(0)
    least = min(100, longest)
    prompts = [
        [draws.randint(0, 10000) for _ in range(draws.randint(least, longest))]
        for _ in range(count)
    ]
    return [(prompt, draws.randint(least, longest)) for prompt in prompts]


def _rows(clock: Clock, roof: Roof | None, name: str, file: Path) -> Iterator[Result]:
    llm = LLM(
        file,
        load="dummy",
        dtype="float32" if clock.smoke else "bfloat16",
        device=str(clock.device),
        attention="triton",
        max_model_len=64 if clock.smoke else 4096,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1 << 20 if clock.smoke else None,
        seed=0,
    )
    stats = llm.engine.stats
    yield Result("model", f"{name}, graphs", note=f"{stats.graph_memory / 2**20:.0f} MiB")
    vocabulary = 300 if clock.smoke else 10001
    yield _single(clock, roof, name, llm, vocabulary)
    yield from _profiles(clock, name, llm, vocabulary)
    shapes = nano_vllm_requests(2, 5) if clock.smoke else nano_vllm_requests()
    shapes = [([token % vocabulary for token in prompt], n) for prompt, n in shapes]
    if name != "qwen3-8b":  # the benchmark is nano-vllm's, of Qwen3-0.6B
        yield from _throughput(clock, roof, name, llm, shapes, file)


def traffic(llm: LLM, shapes: list[tuple[int, int]], together: bool) -> int:
    """Bytes that decoding has to read: weights at each step, keys and values at each token.

    Args:
        shapes: (prompt, new tokens) of each request.
        together: all run at once, so that a step's weights serve them all.
    """
    model = llm.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if not getattr(model.lm_head, "tied", False):
        weights -= model.embed.weight.numel() * model.embed.weight.element_size()
    dtype = llm.engine.model_runner.kv_caches[0][0].dtype
    per_token = bytes_per_page(cache_specs(model), 1, dtype)
    read = sum(new * prompt + new * (new + 1) // 2 for prompt, new in shapes)
    lengths = [new for _, new in shapes]
    return weights * (max(lengths) if together else sum(lengths)) + per_token * read


def _single(clock: Clock, roof: Roof | None, name: str, llm: LLM, vocabulary: int) -> Result:
    """Decoding one sequence, against the time that its bytes take."""
    prompt, new = (4, 3) if clock.smoke else (128, 512)
    label = f"{name}, decode of 1 sequence"
    _run(llm, [(_tokens(prompt, vocabulary), new)])
    before = (llm.engine.stats.decode_time, llm.engine.stats.num_decode_tokens)
    _run(llm, [(_tokens(prompt, vocabulary), new)])
    stats = llm.engine.stats
    seconds = (stats.decode_time - before[0]) / (stats.num_decode_tokens - before[1])
    if roof is None:
        return Result("model", label, note="ran")
    floor = traffic(llm, [(prompt, new)], together=False) / new / roof.bytes_per_second
    note = f"{1 / seconds:.0f} tok/s"
    return Result(
        "model", label, seconds, floor / seconds, "bytes / copy", SINGLE_TARGET.get(name), note
    )


def _profiles(clock: Clock, name: str, llm: LLM, vocabulary: int) -> Iterator[Result]:
    """Steps of decodes: their time, and from steps under torch's profiler the device's part of it.

    The profiler makes steps longer, so that the time is taken without it.
    """
    for batch in [2] if clock.smoke else [1, 64, 256]:
        steps = 2 if clock.smoke else 20
        params = SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=2 * steps + 8)
        for _ in range(batch):
            llm.add_request(_tokens(8, vocabulary), params)
        for _ in range(4):  # prefill, and the first decodes
            llm.step()
        seconds = _steps(llm, steps)
        activity = torch.profiler.ProfilerActivity
        activities = [activity.CPU] if clock.smoke else [activity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            _steps(llm, steps)
        while not llm.is_finished():
            llm.step()
        label = f"{name}, step of {batch} decodes"
        spans = [
            (event.time_range.start / 1e6, event.time_range.end / 1e6)
            for event in profile.events()
            if event.device_type != DeviceType.CPU or clock.smoke
        ]
        busy = covered(spans) / steps
        if clock.smoke:
            yield Result("profile", label, note="ran")
            continue
        note = f"device idle {max(seconds - busy, 0.0) * 1e3:.2f} ms"
        of = "the step: device busy"
        yield Result("profile", label, seconds, busy / seconds, of, BUSY_TARGET, note)


def _steps(llm: LLM, count: int) -> float:
    """Run so many steps; seconds of one, on the clock of the host."""
    start = time.perf_counter()
    for _ in range(count):
        llm.step()
    return (time.perf_counter() - start) / count


def covered(spans: list[tuple[float, float]]) -> float:
    """How long any of these spans (start, end) runs: kernels of two streams overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _throughput(
    clock: Clock, roof: Roof | None, name: str, llm: LLM, shapes: Shapes, file: Path
) -> Iterator[Result]:
    """nano-vllm's benchmark, against the bytes it reads and against transformers."""
    label = f"{name}, nano-vllm's benchmark"
    _run(llm, _warm_up(shapes), temperature=0.6)
    start = time.perf_counter()
    _run(llm, shapes, temperature=0.6)
    ours = time.perf_counter() - start
    new = sum(count for _, count in shapes)
    lengths = [(len(prompt), count) for prompt, count in shapes]
    bytes_read = traffic(llm, lengths, together=True)
    if roof is None:
        yield Result("model", label, note="ran")
    else:
        floor, note = bytes_read / roof.bytes_per_second, f"{new / ours:.0f} tok/s"
        share = floor / ours
        yield Result("model", label, ours, share, "KV + weights / copy", THROUGHPUT_TARGET, note)
    runner = llm.engine.model_runner
    runner.graphs = None
    runner.kv_caches.clear()
    _free()
    theirs = transformers_seconds(file, clock.device, shapes, _warm_up(shapes))
    label = f"{name}, continuous batching"
    if roof is None:
        yield Result("transformers", label, note="ran")
        return
    about = {"of": "transformers' time, ours in it", "target": AHEAD_OF_TRANSFORMERS}
    note = f"{new / theirs:.0f} tok/s; time of theirs over ours"
    yield Result("transformers", label, theirs, theirs / ours, note=note, **about)


def _warm_up(shapes: Shapes) -> Shapes:
    """All prompts, to two tokens: steps of all kinds, so that no kernel is compiled when timed."""
    return [(prompt, min(count, 2)) for prompt, count in shapes]


def _run(llm: LLM, shapes: Shapes, temperature: float = 0.0) -> None:
    params = [
        SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=n) for _, n in shapes
    ]
    llm.generate([prompt for prompt, _ in shapes], params, use_tqdm=False)


def _tokens(count: int, vocabulary: int) -> list[int]:
    return [(7 * place) % vocabulary for place in range(count)]


def _free() -> None:
    """Give memory back before the next model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
