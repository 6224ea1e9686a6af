"""Random chains of ops and random maps: forward then back is the identity, bit for bit.

The examples are the same in every run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_maps import Draw, RandomMap, random_maps
from weights_harness import load_parameters, lone, save, write_map

from assembler.blocks.parallel import TensorParallel
from assembler.weights.ops import (
    Flatten,
    Narrow,
    Op,
    RopePermute,
    Shape,
    Squeeze,
    Transpose,
    Unflatten,
    Unsqueeze,
    apply_ops,
    shape_after,
    write_back,
)
from assembler.weights.plan import plan_load
from assembler.weights.rearrange import parse_rearrangement
from assembler.weights.value_ops import Affine

SAME = settings(derandomize=True, deadline=None, database=None, max_examples=150)


# Chains of ops ------------------------------------------------------------------------------------


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


def _random_op(draw: Draw, shape: Shape) -> Op:
    """An op that a tensor of this shape can go through."""
    dim = draw(st.integers(0, len(shape) - 1))
    size = shape[dim]
    choices: list[Op] = [Unsqueeze(), Affine(scale=draw(st.sampled_from([0.5, -2.0, 8.0])))]
    if len(shape) > 1:
        choices.append(Transpose())
    if shape[0] == 1 and len(shape) > 1:
        choices.append(Squeeze())
    start = draw(st.integers(0, size - 1))
    choices.append(Narrow(dim, start, draw(st.integers(start + 1, size))))
    choices.append(Unflatten(dim, draw(st.sampled_from(_divisors(size)))))
    if dim + 1 < len(shape):
        choices.append(Flatten(dim, size))
    heads = draw(st.sampled_from(_divisors(size)))
    if (size // heads) % 2 == 0:
        rotary = draw(st.integers(1, size // heads // 2)) * 2
        order = draw(st.sampled_from(["interleaved_to_half", "half_to_interleaved"]))
        choices.append(RopePermute(dim, heads, order, rotary, draw(st.booleans())))
    choices.append(_random_rearrangement(draw, shape))
    return draw(st.sampled_from(choices))


def _random_rearrangement(draw: Draw, shape: Shape) -> Op:
    """Axes of a tensor split, permuted and joined; the op is asked for by its result."""
    axes = [f"a{n}" for n in range(len(shape))]
    sizes = dict(zip(axes, shape, strict=True))
    order = draw(st.permutations(axes))
    joined = draw(st.booleans()) and len(order) > 1
    right = f"({order[0]} {order[1]}) {' '.join(order[2:])}" if joined else " ".join(order)
    pattern = parse_rearrangement(f"{' '.join(axes)} -> {right}", sizes if joined else {})
    wanted = [sizes[axis] for axis in order]
    if joined:
        wanted[:2] = [wanted[0] * wanted[1]]
    return pattern.op(tuple(wanted))


@st.composite
def chains(draw: Draw) -> tuple[Shape, list[Op]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    ops: list[Op] = []
    at = shape
    for _ in range(draw(st.integers(0, 5))):
        ops.append(_random_op(draw, at))
        at = shape_after(ops, shape)
    return shape, ops


@SAME
@given(chains())
def test_a_chain_is_walked_back_bit_for_bit(chain: tuple[Shape, list[Op]]):
    """Every element that was read comes back as it was, and nothing else is touched."""
    shape, ops = chain
    disk = torch.randn(shape, generator=torch.Generator().manual_seed(len(ops)))
    value = apply_ops(ops, disk).clone()
    assert tuple(value.shape) == shape_after(ops, shape)
    blank = torch.full(shape, torch.nan)
    write_back(ops, value, blank)
    written = ~blank.isnan()
    assert int(written.sum()) == value.numel()
    assert torch.equal(blank[written], disk[written])
    assert torch.equal(apply_ops(ops, blank), value)


@SAME
@given(chains())
def test_every_op_of_a_chain_is_undone_by_its_inverse(chain: tuple[Shape, list[Op]]):
    shape, ops = chain
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for op in ops:
        y = op.apply(x)
        if op.inverse is not None:
            assert op.loss is None
            assert torch.equal(op.inverse.apply(y), x)
            assert op.inverse.shape(tuple(y.shape)) == tuple(x.shape)
            assert torch.equal(op.inverse.inverse.apply(x), y)
        x = y


# Maps ---------------------------------------------------------------------------------------------


@SAME
@given(random_maps(alternatives=True))
def test_a_random_map_loads_what_torch_computes_and_writes_it_back(case: RandomMap):
    with tempfile.TemporaryDirectory() as folder:
        weight_map, index = write_map(Path(folder), case.text), save(Path(folder), case.disk)
        back = {name: torch.full_like(value, torch.nan) for name, value in case.disk.items()}
        for rank in range(case.ranks):
            model = lone(case.layout, tp=TensorParallel(rank, case.ranks))
            plan = plan_load(weight_map, model, index)
            found = load_parameters(model, weight_map, index)["x.weight"]
            assert torch.equal(found, case.share(rank))
            for piece in plan.pieces:
                value = found
                for span in piece.target_slice:
                    value = value.narrow(span.dim, span.start, span.stop - span.start)
                write_back(piece.ops, value, back[piece.source])
    assert all(torch.equal(back[name], value) for name, value in case.disk.items())
