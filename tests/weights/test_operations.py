"""Every operation of the map language does what the same thing in plain torch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from operation_cases import CASES, EXPERTS, HIDDEN, WIDE, random, text_of
from torch import nn
from weights_harness import load_parameters, lone, nest, save, several, write_map

from assembler.blocks.linear import ColumnLinear
from assembler.blocks.parallel import Part, ShardDim, TensorParallel
from assembler.weights.ops import write_back
from assembler.weights.plan import plan_load

ROW_OR_COLUMN = {name: case for name, case in CASES.items() if case.layout.dim is not None}


@pytest.mark.parametrize("name", CASES)
def test_operations(name: str, tmp_path: Path):
    case = CASES[name]
    weight_map, index = write_map(tmp_path, text_of(case)), save(tmp_path, case.disk)
    loaded = load_parameters(lone(case.layout), weight_map, index)
    assert torch.equal(loaded["x.weight"], case.expected)


@pytest.mark.parametrize("name", ROW_OR_COLUMN)
def test_operations_on_the_ranks_of_a_group(name: str, tmp_path: Path):
    """Each rank's slice of every part, cut out of the whole parameter."""
    case, layout = CASES[name], CASES[name].layout
    weight_map, index = write_map(tmp_path, text_of(case)), save(tmp_path, case.disk)
    sizes = [part.size for part in layout.parts]
    for rank in range(2):
        tp = TensorParallel(rank, 2)
        loaded = load_parameters(lone(layout, tp=tp), weight_map, index)
        shares = [
            whole.narrow(layout.dim, part.rank_rows(rank, 2)[0], len(part.rank_rows(rank, 2)))
            for part, whole in zip(
                layout.parts, case.expected.split(sizes, layout.dim), strict=True
            )
        ]
        assert torch.equal(loaded["x.weight"], torch.cat(shares, layout.dim))


def test_a_stack_is_shared_out_over_modules(tmp_path: Path):
    disk = {f"h.{i}.experts.up": random(EXPERTS, HIDDEN, WIDE) + i for i in range(2)}
    layout = ShardDim("column", (WIDE, HIDDEN), 0, (Part("up", WIDE),))
    model = several({f"h.{i}.e.{e}.up": layout for i in range(2) for e in range(EXPERTS)})
    rule = "{from: 'h.{i}.experts.up', unstack: e, transpose: true}"
    text = "weights: {'h.{i}.e.{e}.up.weight': " + rule + "}\ntp: {column: up}\n"
    text = text.replace("{column: up}", "{column: ['h.{i}.e.{e}.up.weight']}")
    loaded = load_parameters(model, write_map(tmp_path, text), save(tmp_path, disk))
    for i in range(2):
        for e in range(EXPERTS):
            expected = disk[f"h.{i}.experts.up"][e].T
            assert torch.equal(loaded[f"h.{i}.e.{e}.up.weight"], expected)


def test_a_tensor_is_split_over_modules(tmp_path: Path):
    """What a checkpoint fuses and the model does not, weight and bias; sizes differ."""
    weight, bias = random(9, HIDDEN), random(9)
    model = nn.Module()
    with torch.device("meta"):
        for name, rows in (("k", 4), ("v", 5)):
            linear = ColumnLinear(HIDDEN, (Part(name, rows),), True, TensorParallel())
            nest(model, f"a.{name}", linear)
    text = "weights:\n  a:\n    k: {from: kv, split: [k, v]}\n    v: {from: kv, split: [k, v]}\n"
    text += "tp: {column: [a.k, a.v]}\n"
    index = save(tmp_path, {"kv.weight": weight, "kv.bias": bias})
    loaded = load_parameters(model, write_map(tmp_path, text), index)
    assert torch.equal(loaded["a.k.weight"], weight[:4])
    assert torch.equal(loaded["a.v.weight"], weight[4:])
    assert torch.equal(loaded["a.k.bias"], bias[:4])
    assert torch.equal(loaded["a.v.bias"], bias[4:])


def test_a_parameter_keeps_its_own_type(tmp_path: Path):
    disk = random(6)
    model = several({"x": ShardDim("replicated", (6,)), "y": ShardDim("replicated", (6,))})
    text = "weights: {x: {from: x, dtype: float32}, y: y}\n"
    index = save(tmp_path, {"x.weight": disk, "y.weight": disk.clone()})
    plan = plan_load(write_map(tmp_path, text), model, index)
    assert plan.dtypes == {"x.weight": "float32"}
    loaded = load_parameters(model, write_map(tmp_path, text), index, torch.bfloat16)
    assert loaded["x.weight"].dtype == torch.float32 and torch.equal(loaded["x.weight"], disk)
    assert loaded["y.weight"].dtype == torch.bfloat16


def test_index_arithmetic(tmp_path: Path):
    """Pairs of layers on disk that the model keeps as one, counted from 1."""
    disk = {f"h.{n}.w": torch.full((2,), float(n)) for n in range(1, 7)}
    layout = ShardDim("replicated", (2,))
    model = several({f"l.{i}.{x}": layout for i in range(3) for x in "ab"})
    text = "weights:\n  l.{i}:\n    a.weight: 'h.{2*i+1}.w'\n    b.weight: 'h.{i*2+2}.w'\n"
    loaded = load_parameters(model, write_map(tmp_path, text), save(tmp_path, disk))
    assert [int(loaded[f"l.{i}.a.weight"][0]) for i in range(3)] == [1, 3, 5]
    assert [int(loaded[f"l.{i}.b.weight"][0]) for i in range(3)] == [2, 4, 6]


def test_a_filled_parameter_needs_no_tensor(tmp_path: Path):
    layouts = {"x": ShardDim("replicated", (2,)), "y.bias": ShardDim("replicated", (3,))}
    text = "weights: {x: x, y.bias: {fill: 0, dtype: float32}}\n"
    index = save(tmp_path, {"x.weight": torch.ones(2)})
    plan = plan_load(write_map(tmp_path, text), several(layouts), index)
    assert not plan.findings
    assert plan.totals.parameters_filled == plan.totals.parameters == 2
    loaded = load_parameters(several(layouts), write_map(tmp_path, text), index, torch.float16)
    assert torch.equal(loaded["y.bias"], torch.zeros(3))


@pytest.mark.parametrize("name", CASES)
def test_operations_are_undone(name: str, tmp_path: Path):
    """What the pieces write back is the tensor, bit for bit unless an op says that it rounds."""
    case = CASES[name]
    index = save(tmp_path, case.disk)
    plan = plan_load(write_map(tmp_path, text_of(case)), lone(case.layout), index)
    back = {p.source: torch.full_like(index.read(p.source), torch.nan) for p in plan.pieces}
    for piece in plan.pieces:
        value = case.expected
        for span in piece.target_slice:
            value = value.narrow(span.dim, span.start, span.stop - span.start)
        write_back(piece.ops, value, back[piece.source])
    rounds = any(op.loss for piece in plan.pieces for op in piece.ops)
    for source, found in back.items():
        disk = case.disk[source]
        if name == "sliced":
            found, disk = found[2:8], disk[2:8]
        assert torch.allclose(found, disk) if rounds else torch.equal(found, disk)
    assert rounds == (name in ("affine", "negative exp"))
