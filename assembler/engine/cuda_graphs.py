"""Decode steps as CUDA graphs: what a step launches is recorded once and replayed in one call.

A decode of few sequences runs hundreds of short kernels, and to launch them from Python takes
longer than to run them. A graph replays the launches as they were recorded: with the same
addresses, the same grids and the same numbers that the host gave. So every batch size has a graph
of its own, in a ladder; a step takes the smallest that holds it and pads itself with rows that
store nothing. What changes from step to step is copied into tensors that stay where they are
(`decode_inputs`).

What a kernel derives on the host from the lengths of the step must hold for all steps: it is given
the longest context that there may be (`PagedBatch.max_context_len`). Triton's paged attention cuts
contexts into as many splits as that one deserves, and gives shorter ones fewer on the device.
"""

from __future__ import annotations

import bisect
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from assembler.blocks.context import ForwardContext
from assembler.engine.decode_inputs import DecodeInputs
from assembler.engine.overlap import LateTokens
from assembler.engine.step_inputs import StepInputs
from assembler.engine.step_memory import step_memory

if TYPE_CHECKING:
    from assembler.kernels.dispatch import AttentionBackend

# Steps of more sequences run long enough to hide their launches.
MAX_BATCH = 512
# Left free for each graph, of which the driver keeps every launch; what they take is measured.
GRAPH_BYTES = 16 << 20

_log = logging.getLogger(__name__)


class Capture(Protocol):
    """Records what a step does on the device."""

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run `step`, which keeps nothing of what it allocates, and record it -> what replays it.

        Raises:
            RuntimeError: the step cannot be recorded.
        """

    def free_memory(self) -> int:
        """Bytes of the device that nobody holds."""


@dataclass(frozen=True)
class GraphSettings:
    """Which graphs are recorded, and how."""

    batch_sizes: Sequence[int]  # ascending
    max_model_len: int  # tokens of the longest sequence
    capture: Capture


def batch_sizes(max_num_seqs: int) -> list[int]:
    """The ladder: 1, 2, 4, 8, 16, 24, ... 256, 272, ... up to what runs at a time."""
    largest = min(max_num_seqs, MAX_BATCH)
    sizes = {1, 2, 4, *range(8, 257, 8), *range(272, MAX_BATCH + 1, 16), largest}
    return sorted(size for size in sizes if size <= largest)


def graph_settings(
    max_num_seqs: int,
    max_model_len: int,
    device: torch.device,
    backend: AttentionBackend,
    alone: bool,
) -> GraphSettings | None:
    """The graphs that an engine records; None, and the reason in the log, where there are none.

    Args:
        alone: no other ranks run the model; graphs of collectives are not recorded.
    """
    if device.type != "cuda":  # HIP devices call themselves so too
        return None
    if not alone or not backend.capturable:
        reason = f"attention backend '{backend.name}' reads data on the host"
        if not alone:
            reason = "the model is shared by several ranks"
        _log.info("decodes run without CUDA graphs: %s", reason)
        return None
    return GraphSettings(batch_sizes(max_num_seqs), max_model_len, CUDACapture(device))


def graph_memory(settings: GraphSettings, model: nn.Module) -> int:
    """Bytes to leave free for the graphs: what a step of the largest takes, and each by itself."""
    largest = settings.batch_sizes[-1]
    return step_memory(model, largest, largest) + len(settings.batch_sizes) * GRAPH_BYTES


@dataclass
class DecodeGraphs:
    """The graphs of a model, over inputs and logits that they share. Not thread-safe."""

    inputs: DecodeInputs
    logits: torch.Tensor | None = None  # [largest batch, vocab], of the newest step
    replays: dict[int, Callable[[], None]] = field(default_factory=dict)  # by batch size
    sizes: list[int] = field(default_factory=list)  # of the graphs, ascending
    memory: int = 0  # bytes of the device that recording took, buffers and compiled kernels too
    seconds: float = 0.0  # that recording took
    num_replays: int = 0

    def takes(self, step: StepInputs) -> bool:
        """Whether it is a step of decodes only, with a logit for each, that a graph holds."""
        if step.max_seqlen_q != 1 or step.logit_rows is not None or not self.sizes:
            return False
        return len(step.context_lens) <= self.sizes[-1] and self.inputs.holds(step)

    def run(self, step: StepInputs, late: LateTokens | None = None) -> torch.Tensor:
        """The logits [S, vocab] of a step that it `takes`; they are valid until the next one."""
        num_sequences = len(step.context_lens)
        size = self.sizes[bisect.bisect_left(self.sizes, num_sequences)]
        self.inputs.fill(step, size)
        if late is not None:
            late.put_into(self.inputs.of(size)[0])
        self.replays[size]()
        self.num_replays += 1
        return self.logits[:num_sequences]


@torch.inference_mode()
def record_decodes(
    settings: GraphSettings,
    forward: Callable[[torch.Tensor, ForwardContext], torch.Tensor],
    context: Callable[..., ForwardContext],
    *,
    page_size: int,
    device: torch.device,
) -> DecodeGraphs | None:
    """Record the ladder, the largest batch first: smaller ones find room in its memory.

    A batch that the memory does not hold gets no graph. Where a step cannot be recorded at all,
    because it reads data on the host, there are none and the log says so.

    Args:
        forward: the model, (input_ids [S], ctx) -> logits [S, vocab].
        context: makes the `ForwardContext` of `positions`, `sequence_lengths` and `paged`, anew
            each time: what a pass keeps in it must not outlive the pass.
    """
    capture, largest = settings.capture, settings.batch_sizes[-1]
    start, free = time.perf_counter(), capture.free_memory()
    inputs = DecodeInputs(largest, settings.max_model_len, page_size, device)

    def run(size: int) -> torch.Tensor:
        input_ids, fields = inputs.of(size)
        return forward(input_ids, context(**fields))

    try:
        graphs = DecodeGraphs(inputs)
        for size in reversed(settings.batch_sizes):
            _record(graphs, size, run, capture)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        _log.warning("decodes run without CUDA graphs: %s", reason)
        return None
    graphs.sizes = sorted(graphs.replays)
    graphs.memory = max(0, free - capture.free_memory())
    graphs.seconds = time.perf_counter() - start
    _log.info(
        "recorded %d CUDA graphs of decodes, of up to %d sequences, in %.1f s: %.0f MiB",
        len(graphs.sizes),
        max(graphs.sizes, default=0),
        graphs.seconds,
        graphs.memory / 2**20,
    )
    return graphs


def _record(
    graphs: DecodeGraphs, size: int, run: Callable[[int], torch.Tensor], capture: Capture
) -> None:
    """Add the graph of batches of `size`, if there is memory for it."""

    def step() -> None:
        # Copied, since a result that is kept would keep its memory from the other graphs.
        graphs.logits[:size].copy_(run(size))

    try:
        if not graphs.replays:  # it is the largest that there is memory for
            graphs.logits = torch.empty_like(run(size))
        graphs.replays[size] = capture(step)
    except torch.OutOfMemoryError:
        _log.warning("no memory for a CUDA graph of %d sequences: such steps run eagerly", size)


class CUDACapture:
    """Records on a CUDA or HIP device; all graphs share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """See `Capture`. The step runs twice before, to compile kernels and find host reads."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            step()
            with _host_reads_fail():
                step()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            step()
        return graph.replay

    def free_memory(self) -> int:
        """Bytes of the device that nobody holds, this process's idle ones included."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]


@contextmanager
def _host_reads_fail() -> Iterator[None]:
    """Operations that wait for the device raise RuntimeError: inside a graph they could not."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it does not find all of them
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
