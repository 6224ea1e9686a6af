"""Parts deal out their rows: every row once, or once for each replica, and never half a unit."""

from __future__ import annotations

from collections import Counter

import pytest

from assembler.blocks.parallel import Part, TensorParallel
from assembler.errors import SpecError


@pytest.mark.parametrize("tp_size", [1, 2, 3, 4, 5, 6])
def test_rows_of_all_ranks_cover_a_part_exactly_once_in_order(tp_size):
    part = Part("q", 6 * 8, unit=8)
    shares = [part.rank_rows(rank, tp_size) for rank in range(tp_size)]
    assert [row for rows in shares for row in rows] == list(range(48))
    assert all(len(rows) % 8 == 0 for rows in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 8


@pytest.mark.parametrize(("tp_size", "copies"), [(2, 1), (4, 2), (8, 4)])
def test_heads_are_replicated_when_ranks_outnumber_them(tp_size, copies):
    part = Part("k", 2 * 16, unit=16, replicate=True)
    counts = Counter(row for rank in range(tp_size) for row in part.rank_rows(rank, tp_size))
    assert counts == dict.fromkeys(range(32), copies)
    for rank in range(tp_size):
        rows = part.rank_rows(rank, tp_size)
        assert len(rows) == 16 and rows.start % 16 == 0


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "tp_size"),
    [(12, 3, 6), (9, 3, 2), (9, 3, 6), (6, 2, 4), (20, 5, 3), (7, 1, 4), (5, 5, 3), (40, 8, 5)],
)
def test_the_key_heads_of_a_rank_are_those_its_queries_read(num_heads, num_kv_heads, tp_size):
    grouped = num_heads // num_kv_heads
    q = Part("q", num_heads, bundle=grouped)
    k = Part("k", num_kv_heads, replicate=True)
    dealt = []
    for rank in range(tp_size):
        queries, keys = q.rank_rows(rank, tp_size), k.rank_rows(rank, tp_size)
        dealt += queries
        # As the attention kernels have it: local query head h reads h // (queries / keys).
        reads = [keys[n // (len(queries) // len(keys))] for n in range(len(queries))]
        assert reads == [head // grouped for head in queries]
    assert dealt == list(range(num_heads))


@pytest.mark.parametrize(
    ("part", "tp_size"),
    [
        (Part("up", 3), 4),
        (Part("q", 9 * 64, unit=64, bundle=3), 4),
        (Part("k", 4 * 64, unit=64, replicate=True), 6),
        (Part("q", 2 * 64, unit=64), 4),
        (Part("q", 4 * 64, unit=64, bundle=2), 6),
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
        TensorParallel(size=10).local_rows(parts, "mlp")
