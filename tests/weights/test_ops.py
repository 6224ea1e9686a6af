"""Every op's shape is what it makes, and every chain can be walked back bit for bit."""

from __future__ import annotations

import pytest
import torch

from assembler.weights.ops import (
    Flatten,
    Narrow,
    Op,
    RopePermute,
    Squeeze,
    Transpose,
    Unflatten,
    Unsqueeze,
    apply_ops,
    shape_after,
    write_back,
)

OPS = [
    (Transpose(), (4, 6)),
    (Transpose(), (2, 4, 6)),
    (Narrow(0, 1, 3), (4, 6)),
    (Narrow(1, 2, 6), (4, 6)),
    (Unflatten(0, 3), (12, 5)),
    (Unflatten(1, 2), (3, 12)),
    (Flatten(0, 3), (3, 4, 5)),
    (RopePermute(0, 3, "interleaved_to_half"), (24, 5)),
    (RopePermute(0, 2, "half_to_interleaved"), (12,)),
    (RopePermute(1, 2, "half_to_interleaved"), (3, 12)),
    (Unsqueeze(), (4, 6)),
    (Squeeze(), (1, 4, 6)),
]


@pytest.mark.parametrize(("op", "shape"), OPS, ids=str)
def test_shape_and_inverse(op: Op, shape: tuple[int, ...]):
    x = torch.randn(shape)
    y = op.apply(x)
    assert tuple(y.shape) == op.shape(shape)
    assert (y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) or not op.is_view
    if op.inverse is not None:
        assert torch.equal(op.inverse.apply(y), x)
        assert type(op.inverse.inverse) is type(op)


CHAINS = [
    [],
    [Transpose(), Narrow(0, 4, 10)],
    [Unflatten(0, 3), Narrow(1, 1, 3), Flatten(0, 3), Narrow(0, 2, 6)],
    [Unflatten(0, 3), Narrow(1, 0, 2), Flatten(0, 3), RopePermute(0, 3, "interleaved_to_half")],
    [Transpose(), Unflatten(0, 5), Narrow(1, 1, 2), Flatten(0, 5), Unsqueeze()],
    [Narrow(0, 4, 12), RopePermute(0, 2, "half_to_interleaved"), Unsqueeze()],
]


@pytest.mark.parametrize("ops", CHAINS, ids=lambda ops: " > ".join(map(str, ops)) or "none")
def test_write_back_restores_what_was_read_and_leaves_the_rest(ops: list[Op]):
    disk = torch.randn(12, 10)
    value = apply_ops(ops, disk).clone()
    assert tuple(value.shape) == shape_after(ops, (12, 10))
    blank = torch.full_like(disk, torch.nan)
    write_back(ops, value, blank)
    written = ~blank.isnan()
    assert int(written.sum()) == value.numel()
    assert torch.equal(blank[written], disk[written])
    assert torch.equal(apply_ops(ops, blank), value)


def test_pieces_of_one_tensor_write_back_to_the_whole():
    """q, k, v of a head-major tensor tile it: no element is lost, none is written twice."""
    disk = torch.randn(3 * 9, 4)
    chains = [[Unflatten(0, 3), Narrow(1, at, at + 3), Flatten(0, 3)] for at in (0, 3, 6)]
    back = torch.full_like(disk, torch.nan)
    for ops in chains:
        write_back(ops, apply_ops(ops, disk), back)
    assert torch.equal(back, disk)


def permute_as_llama_cpp(weights: torch.Tensor, n_head: int) -> torch.Tensor:
    """What convert_hf_to_gguf does to q and k, in its own words."""
    shape = weights.shape
    out = weights.reshape(n_head, 2, shape[0] // n_head // 2, *shape[1:])
    return out.swapaxes(1, 2).reshape(shape)


@pytest.mark.parametrize("shape", [(24, 7), (24,)])
def test_rope_undoes_the_permutation_of_llama_cpp(shape: tuple[int, ...]):
    hub = torch.randn(shape)
    gguf = permute_as_llama_cpp(hub, 3)
    assert not torch.equal(gguf, hub)
    assert torch.equal(RopePermute(0, 3, "interleaved_to_half").apply(gguf), hub)
    assert torch.equal(RopePermute(0, 3, "half_to_interleaved").apply(hub), gguf)


def test_rope_orders_mean_what_they_say():
    """Interleaved pairs (0, 1), (2, 3) become pairs (0, D/2), (1, D/2 + 1)."""
    rows = torch.arange(8)
    half = RopePermute(0, 2, "interleaved_to_half").apply(rows)
    assert half.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
