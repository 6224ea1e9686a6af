"""Column- and row-parallel linears against plain matrix products."""

from __future__ import annotations

import pytest
import torch
from block_harness import fill, local_slice, randn
from torch import nn
from torch.nn import functional as F

from assembler.blocks.linear import ColumnLinear, ReplicatedLinear, RowLinear
from assembler.blocks.parallel import Part, TensorParallel
from assembler.errors import SpecError

PARTS = (
    Part("q", 24, unit=4),
    Part("k", 8, unit=4, replicate=True),
    Part("v", 8, unit=4, replicate=True),
)


@pytest.mark.parametrize("bias", [True, False])
def test_fused_column_is_its_projections_side_by_side(bias):
    layer = fill(ColumnLinear(10, PARTS, bias, TensorParallel()))
    x = randn(3, 10)
    fused = layer(x).split(layer.local_sizes, dim=-1)
    weights = layer.weight.split((24, 8, 8))
    biases = layer.bias.split((24, 8, 8)) if bias else (None,) * 3
    for got, weight, offset in zip(fused, weights, biases, strict=True):
        torch.testing.assert_close(got, F.linear(x, weight, offset))


@pytest.mark.parametrize("size", [2, 6])
def test_ranks_hold_their_rows_of_every_part(size):
    whole = fill(ColumnLinear(10, PARTS, True, TensorParallel()))
    x = randn(3, 10)
    expected = whole(x).split(whole.local_sizes, dim=-1)
    for rank in range(size):
        layer = ColumnLinear(10, PARTS, True, TensorParallel(rank, size))
        layouts = layer.shard_dims()
        for name, parameter in layer.named_parameters():
            share = local_slice(whole.get_parameter(name).data, layouts[name], rank, size)
            parameter.data.copy_(share)
        got = layer(x).split(layer.local_sizes, dim=-1)
        for part, ours, all_rows in zip(PARTS, got, expected, strict=True):
            rows = part.rank_rows(rank, size)
            torch.testing.assert_close(ours, all_rows[:, rows.start : rows.stop])


def test_layouts_give_the_shapes_of_the_whole_group():
    column = ColumnLinear(10, PARTS, True, TensorParallel(1, 2)).shard_dims()
    assert column["weight"].shape == (40, 10) and column["weight"].kind == "column"
    assert column["bias"].shape == (40,) and column["bias"].parts == PARTS
    row = RowLinear(Part("heads", 24, unit=4), 10, True, TensorParallel(1, 2))
    assert row.weight.shape == (10, 12)
    assert row.shard_dims()["weight"].shape == (10, 24)
    assert row.shard_dims()["weight"].dim == 1
    assert row.shard_dims()["bias"].kind == "replicated"


def test_no_bias_declares_none():
    assert set(ColumnLinear(10, PARTS, False, TensorParallel()).shard_dims()) == {"weight"}
    assert set(RowLinear(PARTS[0], 10, False, TensorParallel()).shard_dims()) == {"weight"}


def test_impossible_split_is_refused_when_building():
    tp = TensorParallel(size=12)
    with pytest.raises(
        SpecError, match=r"layers\.0\.attn\.qkv: 'q' has 6 units of 4 rows.*12 ranks"
    ):
        ColumnLinear(10, PARTS, False, tp, path="layers.0.attn.qkv")
    with pytest.raises(SpecError, match=r"mlp\.down: 'intermediate' has 10 rows"):
        RowLinear(Part("intermediate", 10), 8, False, tp, path="mlp.down")


def test_they_are_linears_and_draw_no_random_numbers():
    before = torch.get_rng_state()
    layer = ColumnLinear(10, PARTS, True, TensorParallel())
    assert isinstance(layer, nn.Linear)
    assert torch.equal(before, torch.get_rng_state())
    with torch.device("meta"):
        assert RowLinear(PARTS[0], 10, True, TensorParallel()).weight.is_meta


def test_a_replicated_layer_is_whole_on_every_rank_and_names_its_parts():
    layer = ReplicatedLinear(6, (Part("latent", 4), Part("rope", 2)), bias=True)
    layouts = layer.shard_dims()
    assert {leaf: dim.shape for leaf, dim in layouts.items()} == {"weight": (6, 6), "bias": (6,)}
    assert all(dim.kind == "replicated" and dim.dim is None for dim in layouts.values())
    assert [part.name for part in layouts["weight"].parts] == ["latent", "rope"]
