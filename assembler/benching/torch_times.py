"""The kernels of a step that torch runs, as its profiler sees them: on a GPU what ran there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from assembler.benching.step_kernels import KernelTime, StepKernels
from assembler.engine.sampling_params import SamplingParams
from assembler.kernels.cost import Cost, linear_cost

if TYPE_CHECKING:
    from assembler.llm import LLM

Watch: TypeAlias = "AbstractContextManager[object]"  # the profiler, or nothing


def torch_kernels(
    name: str, llm: LLM, token_ids: list[int], rounds: int, *, decodes: bool
) -> StepKernels:
    """The kernels of steps of the engine: of prompts, or of decodes behind one.

    Sampling is a part of these steps. What torch's profiler adds to a step is not in the time of
    the whole step.
    """
    steps = _decodes if decodes else _prefills
    steps(llm, token_ids, 1, nullcontext())
    seconds = steps(llm, token_ids, rounds, nullcontext())
    activities = [ProfilerActivity.CPU]
    device = llm.engine.model_runner.device.type
    if device != "cpu":
        activities = list(torch.profiler.supported_activities())
    profiler = profile(activities=activities, record_shapes=True)
    steps(llm, token_ids, rounds, profiler)
    events = profiler.key_averages(group_by_input_shape=True)
    on_device = [event for event in events if event.device_type != DeviceType.CPU]
    itemsize = next(llm.model.parameters()).itemsize
    kernels = [_kernel(event, rounds, itemsize) for event in on_device or events]
    timed = [kernel for kernel in kernels if kernel.seconds > 0]
    return StepKernels.of(name, statistics.median(seconds), "torch's profiler", timed)


def _kernel(event: Any, rounds: int, itemsize: int) -> KernelTime:
    """An event of the profiler, whose times are microseconds of all rounds."""
    on_cpu = event.device_type == DeviceType.CPU
    spent = event.self_cpu_time_total if on_cpu else event.self_device_time_total
    shapes = [shape for shape in event.input_shapes or () if shape]
    calls, seconds = event.count / rounds, spent / rounds / 1e6
    said = " ".join(str(shape).replace(" ", "") for shape in shapes)
    return KernelTime(event.key, said, calls, seconds, _cost(event.key, shapes, calls, itemsize))


def _cost(name: str, shapes: Sequence[Sequence[int]], calls: float, itemsize: int) -> Cost | None:
    """Of products of two matrices; what other operators cost is not known."""
    if name not in ("aten::mm", "aten::addmm") or [*map(len, shapes[-2:])] != [2, 2]:
        return None
    (rows, inputs), (_, outputs) = shapes[-2:]
    one = linear_cost(rows, inputs, outputs, itemsize)
    return Cost(int(one.bytes * calls), int(one.flops * calls))


def _prefills(llm: LLM, token_ids: list[int], rounds: int, watch: Watch) -> list[float]:
    """The seconds of each of `rounds` prompts, up to its first token."""
    seconds = []
    with watch:
        for _ in range(rounds):
            _send(llm, token_ids, 1)
            seconds += _steps(llm)
    return seconds


def _decodes(llm: LLM, token_ids: list[int], rounds: int, watch: Watch) -> list[float]:
    """The seconds of each of `rounds` steps behind a prompt, which is not watched."""
    _send(llm, token_ids[:-1], rounds + 1)
    llm.step()
    with watch:
        return _steps(llm)


def _send(llm: LLM, token_ids: list[int], outputs: int) -> None:
    llm.add_request(token_ids, SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True))


def _steps(llm: LLM) -> list[float]:
    """The seconds of each step until nothing is left to do."""
    seconds = []
    while not llm.is_finished():
        start = time.perf_counter()
        llm.step()
        seconds.append(time.perf_counter() - start)
    return seconds
