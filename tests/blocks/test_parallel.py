"""Parts deal out their rows: every row once, or once for each replica, and never half a unit."""

from __future__ import annotations

from collections import Counter

import pytest

from assembler.blocks.parallel import Part, TensorParallel
from assembler.errors import SpecError


@pytest.mark.parametrize("tp_size", [1, 2, 3, 6])
def test_rows_of_all_ranks_cover_a_part_exactly_once_in_order(tp_size):
    part = Part("q", 6 * 8, unit=8)
    rows = [row for rank in range(tp_size) for row in part.rank_rows(rank, tp_size)]
    assert rows == list(range(48))


@pytest.mark.parametrize(("tp_size", "copies"), [(2, 1), (4, 2), (8, 4)])
def test_heads_are_replicated_when_ranks_outnumber_them(tp_size, copies):
    part = Part("k", 2 * 16, unit=16, replicate=True)
    counts = Counter(row for rank in range(tp_size) for row in part.rank_rows(rank, tp_size))
    assert counts == dict.fromkeys(range(32), copies)
    for rank in range(tp_size):
        rows = part.rank_rows(rank, tp_size)
        assert len(rows) == 16 and rows.start % 16 == 0


def test_replicated_head_is_the_one_the_ranks_queries_read():
    num_heads, num_kv_heads, tp_size = 12, 3, 6
    q = Part("q", num_heads)
    k = Part("k", num_kv_heads, replicate=True)
    for rank in range(tp_size):
        wanted = {head // (num_heads // num_kv_heads) for head in q.rank_rows(rank, tp_size)}
        assert wanted == set(k.rank_rows(rank, tp_size))


@pytest.mark.parametrize(
    ("part", "tp_size"),
    [
        (Part("up", 10), 4),
        (Part("q", 9 * 64, unit=64), 2),
        (Part("k", 3 * 64, unit=64, replicate=True), 2),
        (Part("k", 4 * 64, unit=64, replicate=True), 6),
        (Part("q", 2 * 64, unit=64), 4),
    ],
)
def test_what_cannot_be_shared_is_refused_with_place_and_reason(part, tp_size):
    with pytest.raises(
        SpecError, match=rf"layers\.3\.x: '{part.name}' has {part.units} .*{tp_size}"
    ):
        TensorParallel(size=tp_size).local_rows((part,), "layers.3.x")


def test_a_refusal_names_all_parts():
    parts = (Part("gate", 7), Part("up", 9))
    with pytest.raises(SpecError, match=r"'gate' has 7 rows.*; 'up' has 9 rows"):
        TensorParallel(size=2).local_rows(parts, "mlp")
