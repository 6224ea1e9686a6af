"""What a plan proves before a byte of weights is read: one broken checkpoint or map a case."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from weights_harness import MAP, decoder, kinds, save, tensors, write_map

from assembler.blocks.parallel import TensorParallel
from assembler.errors import CheckpointError
from assembler.weights.finding import Finding
from assembler.weights.plan import LoadPlan, plan_load

Weights = dict[str, torch.Tensor]


def make_plan(
    tmp_path: Path,
    change: Callable[[Weights], object] = lambda w: None,
    map_text: str = MAP,
    **options: object,
) -> LoadPlan:
    weights = tensors(qkv_bias=bool(options.get("qkv_bias")))
    change(weights)
    return plan_load(write_map(tmp_path, map_text), decoder(**options), save(tmp_path, weights))


def drop(*names: str) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        for name in names:
            del weights[name]

    return change


def put(**shapes: tuple[int, ...]) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        for name, shape in shapes.items():
            weights[name.replace("__", ".")] = torch.zeros(shape)

    return change


def test_a_whole_checkpoint_is_covered(tmp_path: Path):
    plan = make_plan(tmp_path)
    assert not plan.findings
    plan.raise_for_findings()
    totals = plan.totals
    assert totals.tensors == totals.tensors_covered == 3 + 3 * 8
    assert totals.nbytes == totals.nbytes_covered == plan.nbytes
    assert totals.parameters == totals.parameters_filled == 3 + 3 * 5
    assert len(plan.pieces) == 27
    offsets = [piece.info.offset for piece in plan.pieces]
    assert offsets == sorted(offsets)


def test_pieces_tile_every_parameter(tmp_path: Path):
    """Counting writes per element: each is written exactly once."""
    model = decoder()
    plan = plan_load(write_map(tmp_path), model, save(tmp_path, tensors()))
    counts = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    for piece in plan.pieces:
        place = counts[piece.target]
        for span in piece.target_slice:
            place = place.narrow(span.dim, span.start, span.stop - span.start)
        assert tuple(place.shape) == piece.shape
        place += 1
    assert all((count == 1).all() for count in counts.values())


def test_planning_reads_no_weights(tmp_path: Path):
    index = save(tmp_path, tensors())
    (tmp_path / "model.safetensors").unlink()
    assert not plan_load(write_map(tmp_path), decoder(), index).findings


def test_findings_of_the_index_are_findings_of_the_plan(tmp_path: Path):
    index = save(tmp_path, tensors())
    index = replace(
        index,
        findings=(
            Finding("duplicate", "a.weight", "is in two shards"),
            Finding("index", "b", "left aside", severity="note"),
        ),
    )
    plan = plan_load(write_map(tmp_path), decoder(), index)
    assert len(plan.findings) == 2 and kinds(plan) == [("duplicate", "a.weight")]
    with pytest.raises(CheckpointError, match="is in two shards"):
        plan.raise_for_findings()


LINE = "    mlp.down: mlp.down_proj\n"


def test_one_tensor_cannot_fill_two_parts(tmp_path: Path):
    """Two patterns that differ can still give one name: {i} and {2*i} in layer 0."""
    text = MAP.replace("[mlp.gate_proj, mlp.up_proj]", '["mlp.x{i}", "mlp.x{2*i}"]')
    names = {
        f"model__layers__{i}__mlp__x{n}__weight": (8, 12) for i in range(3) for n in (i, 2 * i)
    }
    plan = make_plan(tmp_path, put(**names), text)
    assert ("duplicate", "model.layers.0.mlp.x0.weight") in kinds(plan)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.gate_up\.weight wants it twice"):
        plan.raise_for_findings()
    assert plan.totals.parameters_filled == 17


def test_an_optional_rule_may_apply_nowhere(tmp_path: Path):
    text = MAP.replace(LINE, LINE + "    attn.q_norm: {from: q_norm, optional: true}\n")
    assert not make_plan(tmp_path, map_text=text).findings


def test_ignored_tensors_are_covered_with_their_reason(tmp_path: Path):
    names = {f"model__layers__{i}__self_attn__rotary_emb__inv_freq": (3,) for i in range(3)}
    plan = make_plan(tmp_path, put(**names))
    assert not plan.findings
    assert {item.reason for item in plan.ignored} == {"recomputed from the config"}
    assert plan.totals.tensors == plan.totals.tensors_covered == 30


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_the_prefix_that_fits_is_chosen(prefix: str, tmp_path: Path):
    plan = make_plan(tmp_path, lambda w: w.update({prefix + k: w.pop(k) for k in list(w)}))
    assert not plan.findings and plan.prefix == prefix


def test_a_stray_prefixed_tensor_does_not_change_the_prefix(tmp_path: Path):
    plan = make_plan(tmp_path, put(language_model__model__norm__weight=(12,)))
    assert plan.prefix == ""
    assert kinds(plan) == [("unclaimed", "language_model.model.norm.weight")]


def test_biases_move_with_their_module(tmp_path: Path):
    plan = make_plan(tmp_path, qkv_bias=True)
    assert not plan.findings
    biases = [p for p in plan.pieces if p.target == "layers.0.attn.qkv.bias"]
    assert [(p.part, p.target_slice[0].start) for p in biases] == [("k", 24), ("q", 0), ("v", 36)]
    assert kinds(
        make_plan(tmp_path, drop("model.layers.1.self_attn.v_proj.bias"), qkv_bias=True)
    ) == [("half_merged", "layers.1.attn.qkv.bias")]


def test_a_row_parallel_bias_is_whole_on_every_rank(tmp_path: Path):
    names = {f"model__layers__{i}__self_attn__o_proj__bias": (12,) for i in range(3)}
    assert not make_plan(tmp_path, put(**names), o_bias=True).findings


def test_tied_heads(tmp_path: Path):
    without = make_plan(tmp_path, drop("lm_head.weight"), tied=True)
    assert not without.findings and not without.ties
    assert without.totals.parameters == without.totals.parameters_filled == 17
    given = make_plan(tmp_path, tied=True)
    assert not given.findings
    [tie] = given.ties
    assert (tie.source, tie.twin) == ("lm_head.weight", "model.embed_tokens.weight")
    assert given.totals.tensors_covered == given.totals.tensors == 27
    other = make_plan(tmp_path, put(lm_head__weight=(21, 12)), tied=True)
    assert kinds(other) == [("shape", "lm_head.weight")]


def test_tensor_parallel_plans_take_each_ranks_rows(tmp_path: Path):
    weight_map, index = write_map(tmp_path), save(tmp_path, tensors())
    covered: dict[str, set] = {}
    for rank in range(2):
        plan = plan_load(weight_map, decoder(tp=TensorParallel(rank, 2)), index)
        assert not plan.findings and (plan.rank, plan.size) == (rank, 2)
        assert plan.totals.tensors_covered == 27
        for piece in plan.pieces:
            covered.setdefault(piece.source, set()).add(piece.ops)
            share = piece.nbytes / piece.info.nbytes
            assert share == (1.0 if "norm" in piece.target else 0.5), piece
    q_ops = covered["model.layers.0.self_attn.q_proj.weight"]
    assert sorted(str(ops[0]) for ops in q_ops) == ["rows 0:12", "rows 12:24"]
    o_ops = covered["model.layers.0.self_attn.o_proj.weight"]
    assert sorted(str(ops[0]) for ops in o_ops) == ["columns 0:12", "columns 12:24"]


def test_kv_heads_are_shared_when_there_are_more_ranks(tmp_path: Path):
    weight_map, index = write_map(tmp_path), save(tmp_path, tensors())
    rows = []
    for rank in range(4):
        plan = plan_load(weight_map, decoder(tp=TensorParallel(rank, 4)), index)
        assert not plan.findings
        [k] = [p for p in plan.pieces if p.source == "model.layers.0.self_attn.k_proj.weight"]
        rows.append(str(k.ops[0]))
    assert rows == ["rows 0:6", "rows 0:6", "rows 6:12", "rows 6:12"]


def test_one_near_tensor_is_named_once(tmp_path: Path):
    def fuse(weights: Weights) -> None:
        gate = next(name for name in weights if name.endswith("gate_proj.weight"))
        weights[gate.replace("gate_proj", "gateup_proj")] = weights.pop(gate)
        del weights[gate.replace("gate_proj", "up_proj")]

    [missing] = [f for f in make_plan(tmp_path, fuse).findings if f.kind == "missing"]
    assert missing.hint.count("Did you mean") == 1


def test_many_findings_are_capped(tmp_path: Path):
    weights = tensors()
    weights |= {f"{'x' * n}.weight": torch.zeros(1) for n in range(1, 51)}
    plan = plan_load(write_map(tmp_path), decoder(), save(tmp_path, weights))
    assert len(plan.errors) == 50
    with pytest.raises(CheckpointError) as error:
        plan.raise_for_findings()
    lines = str(error.value).splitlines()
    assert len(lines) == 32 and lines[-1] == "  and 20 more"


def test_hostile_names_are_findings_too(tmp_path: Path):
    def change(weights: Weights) -> None:
        for name in ("{0}", "a.{}.b", "..", "model.layers.9999999999999999999.x", "%s.{i}"):
            weights[name] = torch.zeros(1)
        weights["model.layers.0.self_attn.q_proj.{1}"] = torch.zeros(1)

    plan = make_plan(tmp_path, change)
    assert len(plan.errors) == 6 and {kind for kind, _ in kinds(plan)} == {"unclaimed"}


@pytest.mark.parametrize(("head", "fits"), [("slice: 0", True), ("slice: 1", False)])
def test_a_tied_head_is_read_like_the_embedding(head: str, fits: bool, tmp_path: Path):
    """A padded vocabulary on both sides; the rules have to do the same with it."""
    text = MAP.replace("embed: model.embed_tokens", "embed: {from: model.embed_tokens, slice: 0}")
    text = text.replace("lm_head: lm_head\n", f"lm_head: {{from: lm_head, {head}}}\n")
    padded = put(model__embed_tokens__weight=(24, 12), lm_head__weight=(24, 12))
    plan = make_plan(tmp_path, padded, text, tied=True)
    assert kinds(plan) == ([] if fits else [("map", "lm_head.weight")])
    assert len(plan.ties) == fits
    assert not make_plan(tmp_path, drop("lm_head.weight"), text, tied=True).errors


@pytest.mark.parametrize(
    ("inherited", "own", "kind"),
    [
        ("", "norm.weight: model.norm.weight", "dead_rule"),
        ("  adapter: model.adapter\n", "", "unknown_target"),
    ],
)
def test_an_inherited_rule_is_taken_back_by_the_map_that_inherits(
    inherited: str, own: str, kind: str, tmp_path: Path
):
    write_map(tmp_path, MAP.replace("tp:", f"{inherited}tp:"), "base")
    mine = write_map(tmp_path, f"extends: base\nweights: {{{own}}}\n", "mine")
    (finding,) = plan_load(mine, decoder(), save(tmp_path, tensors())).findings
    assert finding.kind == kind and "base.yaml:" in str(finding.where)
    assert re.search(r"inherited: null in .*mine\.yaml takes it back", finding.hint)
