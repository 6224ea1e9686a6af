"""Loading, judged against the same rearrangements written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from weights_harness import MAP, SIZES, Leaf, decoder, nest, save, tensors, write_map

from assembler.blocks.context import BuildContext
from assembler.blocks.linear import ColumnLinear
from assembler.blocks.parallel import Part, ShardDim, TensorParallel
from assembler.blocks.rope import RotaryEmbedding
from assembler.blocks.rope_settings import RopeSettings
from assembler.errors import CheckpointError
from assembler.weights.dummy import dummy_load
from assembler.weights.execute import execute_plan, materialize, reset_buffers, tie_weights
from assembler.weights.index import CheckpointIndex
from assembler.weights.plan import plan_load
from assembler.weights.weight_map import WeightMap

HEADS, KV, DIM, HIDDEN = 4, 2, 6, 5  # odd sizes, so that no wrong reshape fits by accident


def load(
    model: nn.Module,
    weight_map: WeightMap,
    index: CheckpointIndex,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> dict[str, torch.Tensor]:
    plan = plan_load(weight_map, model, index)
    plan.raise_for_findings()
    materialize(model, "cpu", dtype)
    execute_plan(plan, model, index, **options)
    tie_weights(model)
    return {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}


def test_a_llama_checkpoint(tmp_path: Path):
    weights = tensors(qkv_bias=True)
    loaded = load(decoder(qkv_bias=True), write_map(tmp_path), save(tmp_path, weights))
    for i in range(SIZES.layers):
        at = f"model.layers.{i}"
        for leaf in ("weight", "bias"):
            qkv = [weights[f"{at}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            assert torch.equal(loaded[f"layers.{i}.attn.qkv.{leaf}"], torch.cat(qkv))
        gate_up = [weights[f"{at}.mlp.{x}_proj.weight"] for x in ("gate", "up")]
        assert torch.equal(loaded[f"layers.{i}.mlp.gate_up.weight"], torch.cat(gate_up))
        down = weights[f"{at}.mlp.down_proj.weight"]
        assert torch.equal(loaded[f"layers.{i}.mlp.down.weight"], down)
    assert torch.equal(loaded["norm.weight"], weights["model.norm.weight"])
    assert torch.equal(loaded["lm_head.weight"], weights["lm_head.weight"])


# Layouts on disk ----------------------------------------------------------------------------------


def one_linear(parts: tuple[Part, ...], bias: bool) -> nn.Module:
    root = nn.Module()
    with torch.device("meta"):
        nest(root, "h.0.x", ColumnLinear(HIDDEN, parts, bias, TensorParallel()))
    return root


def parts(q_heads: int = HEADS, kv_heads: int = KV) -> tuple[Part, ...]:
    q = Part("q", q_heads * DIM, DIM)
    return q, Part("k", kv_heads * DIM, DIM, True), Part("v", kv_heads * DIM, DIM, True)


def neox(fused: torch.Tensor) -> torch.Tensor:
    """GPT-NeoX (and BLOOM): [heads, 3, dim, ...] -> q, k, v."""
    by_head = fused.view(HEADS, 3, DIM, *fused.shape[1:])
    return torch.cat([by_head[:, n].reshape(HEADS * DIM, *fused.shape[1:]) for n in range(3)])


def falcon(fused: torch.Tensor) -> torch.Tensor:
    """Falcon-40B and InternLM2: [kv groups, q heads of the group + k + v, dim, ...]."""
    grouped = fused.view(KV, HEADS // KV + 2, DIM, *fused.shape[1:])
    q, k, v = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return torch.cat([x.reshape(-1, *fused.shape[1:]) for x in (q, k, v)])


def codegen(fused: torch.Tensor) -> torch.Tensor:
    """CodeGen: shards of the width, each q, v, k."""
    shards = 2
    split = fused.view(shards, 3, HEADS * DIM // shards, *fused.shape[1:])
    q, v, k = (split[:, n].reshape(HEADS * DIM, *fused.shape[1:]) for n in range(3))
    return torch.cat([q, k, v])


def interleaved_rope(fused: torch.Tensor) -> torch.Tensor:
    """llama.cpp: the rows of q and k in pairs; `convert_hf_to_gguf` permutes them so."""
    rows = [part.size for part in parts()]
    q, k, v = fused.split(rows)

    def half(x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(heads, DIM // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return torch.cat([half(q, HEADS), half(k, KV), v])


Layout = tuple[str, tuple[Part, ...], Callable[[torch.Tensor], torch.Tensor], bool]
EQUAL = parts(HEADS, HEADS)

LAYOUTS: dict[str, Layout] = {
    "phi3": ("{from: x, parts: [q, k, v]}", parts(), lambda t: t, False),
    "other order": (
        "{from: x, parts: [v, q, k]}",
        parts(),
        lambda t: torch.cat([t[12:36], t[36:], t[:12]]),
        False,
    ),
    "neox": ("{from: x, parts: [q, k, v], per: head}", EQUAL, neox, False),
    "falcon": ("{from: x, parts: [q, k, v], per: kv_head}", parts(), falcon, False),
    "falcon, equal heads": ("{from: x, parts: [q, k, v], per: kv_head}", EQUAL, neox, False),
    "codegen": ("{from: x, parts: [q, v, k], per: 2}", EQUAL, codegen, False),
    "gpt2": ("{from: x, parts: [q, k, v], transpose: true}", parts(), lambda t: t, True),
    "transposed neox": (
        "{from: x, transpose: true, parts: [q, k, v], per: head}",
        EQUAL,
        neox,
        True,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_fused_layouts(name: str, tmp_path: Path):
    rule, segments, straight, transposed = LAYOUTS[name]
    rows = sum(part.size for part in segments)
    torch.manual_seed(0)
    weight, bias = torch.randn(rows, HIDDEN), torch.randn(rows)
    on_disk = {"h.0.x.weight": weight.T if transposed else weight, "h.0.x.bias": bias}
    text = "weights:\n  h.{i}:\n    from: h.{i}\n    x: " + rule + "\ntp: {column: x}\n"
    loaded = load(one_linear(segments, True), write_map(tmp_path, text), save(tmp_path, on_disk))
    assert torch.equal(loaded["h.0.x.weight"], straight(weight))
    assert torch.equal(loaded["h.0.x.bias"], straight(bias))


def test_rope_permutation_of_separate_tensors(tmp_path: Path):
    torch.manual_seed(0)
    fused = torch.randn(sum(part.size for part in parts()), HIDDEN)
    q, k, v = fused.split([part.size for part in parts()])
    text = (
        "weights:\n  h.{i}:\n    from: h.{i}\n    x:\n"
        "      - {from: q, rope: interleaved_to_half}\n"
        "      - {from: k, rope: interleaved_to_half}\n      - v\ntp: {column: x}\n"
    )
    index = save(tmp_path, {"h.0.q.weight": q, "h.0.k.weight": k, "h.0.v.weight": v})
    loaded = load(one_linear(parts(), False), write_map(tmp_path, text), index)
    assert torch.equal(loaded["h.0.x.weight"], interleaved_rope(fused))


def test_some_parts_fused_and_one_apart(tmp_path: Path):
    torch.manual_seed(0)
    q, kv = torch.randn(24, HIDDEN), torch.randn(24, HIDDEN)
    text = (
        "weights:\n  h.{i}:\n    from: h.{i}\n    x: [q, {from: kv, parts: [k, v], per: head}]\n"
        "tp: {column: x}\n"
    )
    index = save(tmp_path, {"h.0.q.weight": q, "h.0.kv.weight": kv})
    loaded = load(one_linear(parts(), False), write_map(tmp_path, text), index)
    by_head = kv.view(KV, 2, DIM, HIDDEN)
    expected = [q, by_head[:, 0].reshape(12, HIDDEN), by_head[:, 1].reshape(12, HIDDEN)]
    assert torch.equal(loaded["h.0.x.weight"], torch.cat(expected))


def test_experts_are_stacked_in_number_order(tmp_path: Path):
    experts = 11  # as strings, 10 sorts before 2
    torch.manual_seed(0)
    on_disk = {
        f"h.0.e.{e}.{name}.weight": torch.randn(4, 3) for e in range(experts) for name in "ab"
    }
    root = nn.Module()
    layout = ShardDim("column", (experts, 8, 3), 1, (Part("gate", 4), Part("up", 4)))
    with torch.device("meta"):
        nest(root, "h.0.x", Leaf(layout))
    text = "weights:\n  h.{i}:\n    from: 'h.{i}.e.{e}'\n    x: [a, b]\ntp: {column: x}\n"
    loaded = load(root, write_map(tmp_path, text), save(tmp_path, on_disk))
    expected = [
        torch.cat([on_disk[f"h.0.e.{e}.{name}.weight"] for name in "ab"]) for e in range(experts)
    ]
    assert torch.equal(loaded["h.0.x.weight"], torch.stack(expected))


def test_one_parameter_has_a_rule_of_its_own(tmp_path: Path):
    text = MAP.replace("  norm: model.norm\n", "  norm.weight: model.norm.gamma\n")
    weights = tensors()
    weights["model.norm.gamma"] = weights.pop("model.norm.weight")
    loaded = load(decoder(), write_map(tmp_path, text), save(tmp_path, weights))
    assert torch.equal(loaded["norm.weight"], weights["model.norm.gamma"])


# Tensor parallelism -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_hold_the_slices_of_one_model(size: int, tmp_path: Path):
    weight_map, index = write_map(tmp_path), save(tmp_path, tensors())
    whole = load(decoder(), weight_map, index)
    ranks = [load(decoder(tp=TensorParallel(r, size)), weight_map, index) for r in range(size)]
    for rank, shard in enumerate(ranks):
        q = whole["layers.1.attn.qkv.weight"][:24].chunk(size)[rank]
        kv_head = rank * SIZES.kv_heads // size
        k = whole["layers.1.attn.qkv.weight"][24:36].split(6)[kv_head]
        v = whole["layers.1.attn.qkv.weight"][36:].split(6)[kv_head]
        assert torch.equal(shard["layers.1.attn.qkv.weight"], torch.cat([q, k, v]))
        gate, up = whole["layers.1.mlp.gate_up.weight"].chunk(2)
        halves = torch.cat([gate.chunk(size)[rank], up.chunk(size)[rank]])
        assert torch.equal(shard["layers.1.mlp.gate_up.weight"], halves)
        assert torch.equal(shard["norm.weight"], whole["norm.weight"])
    for name, dim in (("layers.0.attn.o.weight", 1), ("embed.weight", 0), ("lm_head.weight", 0)):
        assert torch.equal(torch.cat([shard[name] for shard in ranks], dim), whole[name])


def test_a_head_major_tensor_is_ungrouped_before_it_is_shared_out(tmp_path: Path):
    torch.manual_seed(0)
    fused = torch.randn(3 * HEADS * DIM, HIDDEN)
    text = "weights:\n  x: {from: x, parts: [q, k, v], per: head}\ntp: {column: x}\n"
    weight_map, index = write_map(tmp_path, text), save(tmp_path, {"x.weight": fused})
    whole = neox(fused).chunk(3)
    for rank in range(2):
        root, tp = nn.Module(), TensorParallel(rank, 2)
        root.tp = tp
        with torch.device("meta"):
            root.x = ColumnLinear(HIDDEN, EQUAL, False, tp)
        expected = torch.cat([part.chunk(2)[rank] for part in whole])
        assert torch.equal(load(root, weight_map, index)["x.weight"], expected)


# Memory, dtypes, ties -----------------------------------------------------------------------------


def test_dtype_changes_in_the_copy(tmp_path: Path):
    weights = tensors()
    loaded = load(decoder(), write_map(tmp_path), save(tmp_path, weights), torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in loaded.values())
    down = weights["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(loaded["layers.0.mlp.down.weight"], down.bfloat16())


def test_materialize_keeps_ties_and_integers():
    model = decoder(tied=True)
    model.embed.steps = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    materialize(model, "cpu", torch.float16)
    assert model.lm_head.weight is model.embed.weight
    assert model.embed.weight.dtype == torch.float16
    assert model.embed.steps.dtype == torch.int64


def test_a_tied_head(tmp_path: Path):
    weights = tensors()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    model = decoder(tied=True)
    loaded = load(model, write_map(tmp_path), save(tmp_path, weights))
    assert model.lm_head.weight is model.embed.weight
    assert torch.equal(loaded["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_a_tied_head_that_differs_is_refused(tmp_path: Path):
    model = decoder(tied=True)
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' differs from 'model\.embed_tok"):
        load(model, write_map(tmp_path), save(tmp_path, tensors()))
    assert all(p.is_meta for p in model.parameters())


def test_buffers_are_recomputed():
    root = nn.Module()
    settings = RopeSettings(theta=100.0)
    with torch.device("meta"):
        root.rope = RotaryEmbedding(settings, 8)
    materialize(root, "cpu", torch.bfloat16)
    assert root.rope.inv_freq.is_meta
    reset_buffers(root, "cpu")
    assert torch.allclose(root.rope.inv_freq, 100.0 ** (-torch.arange(0, 8, 2) / 8.0))


# Failure ------------------------------------------------------------------------------------------


def test_a_plan_with_findings_is_not_executed(tmp_path: Path):
    weights = tensors()
    del weights["model.norm.weight"]
    model, index = decoder(), save(tmp_path, weights)
    plan = plan_load(write_map(tmp_path), model, index)
    materialize(model, "cpu", torch.float32)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        execute_plan(plan, model, index)


# Dummy weights ------------------------------------------------------------------------------------


def dummy(seed: int = 0, **options: object) -> dict[str, torch.Tensor]:
    model = decoder(**options)
    materialize(model, "cpu", torch.float32)
    dummy_load(model, seed)
    return {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}


def test_dummy_weights_are_the_same_every_time():
    first, again, other = dummy(), dummy(), dummy(seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["layers.0.mlp.down.weight"], first["layers.1.mlp.down.weight"])
    flat = torch.cat([v.flatten() for name, v in first.items() if "norm" not in name])
    assert abs(flat.std() - 0.02) < 2e-3 and abs(flat.mean()) < 2e-3
    norms = torch.cat([v for name, v in first.items() if "norm" in name])
    assert abs(norms.mean() - 1) < 0.02


def test_dummy_ranks_hold_slices_of_one_model():
    whole, ranks = dummy(), [dummy(tp=TensorParallel(rank, 2)) for rank in range(2)]
    o = [shard["layers.0.attn.o.weight"] for shard in ranks]
    assert torch.equal(torch.cat(o, 1), whole["layers.0.attn.o.weight"])
    k = torch.cat([shard["layers.0.attn.qkv.weight"][12:18] for shard in ranks])
    assert torch.equal(k, whole["layers.0.attn.qkv.weight"][24:36])


def test_dummy_norms_with_an_offset_store_what_is_left():
    from assembler.blocks.norms import RMSNorm

    root = nn.Module()
    root.norm = RMSNorm(BuildContext(64, 8, None, TensorParallel()), eps=1e-6, offset=1)
    dummy_load(root)
    assert abs(root.norm.weight.mean()) < 0.02
