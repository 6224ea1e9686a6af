"""Tokens that the host has not read: on their way to it, and into the next step."""

from types import SimpleNamespace

import pytest
import torch

from assembler.engine import overlap
from assembler.engine.overlap import LateTokens, SampledTokens
from assembler.engine.page_pool import PagePool
from assembler.engine.sampling_params import SamplingParams
from assembler.engine.scheduler import Scheduler
from assembler.engine.sequence import Sequence, SequenceStatus


@pytest.mark.parametrize(
    ("sources", "rows", "expected"),
    [([0, 1, 2], [0, 1, 2], [7, 0, 9, 40]), ([2, 0], [1, 3], [10, 9, 30, 7])],
)
def test_late_tokens_go_where_they_belong(sources, rows, expected):
    input_ids = torch.tensor([10, 20, 30, 40])
    LateTokens(torch.tensor([7, -2, 9]), sources, rows).put_into(input_ids)
    assert input_ids.tolist() == expected


def test_tokens_are_read_behind_the_event_that_follows_their_copy(monkeypatch):
    """With a stand-in for a device on which a copy is made when its event is waited for."""
    log = []
    on_device = torch.tensor([4, 5])

    class Pinned:
        values = None

        def copy_(self, source, non_blocking):
            assert non_blocking
            log.append("copy")

        def tolist(self):
            return self.values

    pinned = Pinned()

    class Event:
        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")
            pinned.values = on_device.tolist()

    monkeypatch.setattr(overlap, "runs_asynchronously", lambda device: True)
    monkeypatch.setattr(torch, "empty_like", lambda like, device, pin_memory: pinned)
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=Event))
    tokens = SampledTokens(on_device)
    assert log == ["copy", "record"]
    assert tokens.read() == [4, 5] and log == ["copy", "record", "wait"]


@pytest.mark.parametrize(("reused", "reason"), [(0, "abort"), (4, None)])
def test_no_numbers_of_a_sequence_that_was_preempted_meanwhile(reused, reason):
    """Its pages are in other hands by then: what anybody knows of pages is forgotten."""
    params = SamplingParams(max_tokens=50)
    a, b = (Sequence(name, [1] * 4, params, max_length=50, page_salt=b"x") for name in "ab")
    scheduler = Scheduler(PagePool(3, 4), max_num_batched_tokens=16, max_num_seqs=8)
    for sequence in (a, b):
        scheduler.add(sequence)
    in_flight = scheduler.schedule()
    scheduler.launched(in_flight)
    b.num_reused_tokens = reused
    following = scheduler.schedule()  # a takes the third page, so b has to go
    scheduler.launched(following)
    assert b.status is SequenceStatus.WAITING and not b.pages
    assert len(scheduler.page_pool.known)
    assert scheduler.update(in_flight, [7, None]) == ([a, b] if reason else [a])
    assert len(scheduler.page_pool.known) == 0 and b.finish_reason == reason
    assert (b in scheduler.waiting) == (reason is None)
    assert not b.num_unread_tokens and not b.discards_unread
    scheduler.check_integrity()
