"""The recorder of a GPU, in front of a stand-in for torch.cuda that notes what is asked of it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from assembler.engine.cuda_graphs import CUDACapture

DEVICE = torch.device("cuda", 0)


class FakeStream:
    def __init__(self, name):
        self.name = name
        self.log = None

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """What happens, in order."""
    events: list[str] = []
    current, side = FakeStream("current"), FakeStream("side")
    current.log = side.log = events
    state = {"mode": 0}

    def set_mode(mode):
        state["mode"] = mode
        events.append(f"host reads: {mode}")

    @contextmanager
    def stream(chosen):
        events.append(f"on {chosen.name}")
        yield

    @contextmanager
    def graph(made, pool, stream):
        events.append(f"record in {pool} on {stream.name}")
        yield
        made.recorded = True

    class FakeGraph:
        recorded = False

        def replay(self):
            assert self.recorded
            events.append("replay")

    fakes = {
        "Stream": lambda device: side,
        "current_stream": lambda device: current,
        "graph_pool_handle": lambda: "the pool",
        "stream": stream,
        "CUDAGraph": FakeGraph,
        "graph": graph,
        "get_sync_debug_mode": lambda: state["mode"],
        "set_sync_debug_mode": set_mode,
        "synchronize": lambda device: events.append("wait"),
        "empty_cache": lambda: events.append("empty"),
        "mem_get_info": lambda device: (70, 100),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return events


def test_a_step_is_warmed_up_beside_and_recorded_in_the_shared_pool(log):
    replay = CUDACapture(DEVICE)(lambda: log.append("step"))
    assert log == [
        "side waits for current",
        "on side",
        "step",  # compiles what it launches
        "host reads: error",
        "step",
        "host reads: 0",
        "current waits for side",
        "record in the pool on side",
        "step",
    ]
    replay()
    assert log[-1] == "replay"


def test_a_step_that_reads_on_the_host_is_not_recorded(log):
    def step():
        if log[-1] == "host reads: error":
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        CUDACapture(DEVICE)(step)
    assert log[-1] == "host reads: 0"  # what was, is again
    assert not [event for event in log if event.startswith("record")]


def test_memory_is_read_once_idle_blocks_are_given_back(log):
    assert CUDACapture(DEVICE).free_memory() == 70
    assert log == ["wait", "empty"]
