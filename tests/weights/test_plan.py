"""What a plan proves before a byte of weights is read: one broken checkpoint or map a case."""

from __future__ import annotations

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


def renamed(old: str, new: str) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        for name in list(weights):
            weights[name.replace(old, new)] = weights.pop(name)

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


Case = tuple[Callable[[Weights], object], list[tuple[str, str]], str]

BROKEN: dict[str, Case] = {
    "missing": (
        drop("model.norm.weight"),
        [("missing", "norm.weight")],
        r"the checkpoint has no model\.norm\.weight .*tiny\.yaml:11",
    ),
    "missing in one layer": (
        drop("model.layers.1.mlp.down_proj.weight"),
        [("missing", "layers.1.mlp.down.weight")],
        r"no model\.layers\.1\.mlp\.down_proj\.weight",
    ),
    "missing in every layer": (
        drop(*[f"model.layers.{i}.mlp.down_proj.weight" for i in range(3)]),
        [("missing", "layers.{0-2}.mlp.down.weight")],
        r"no model\.layers\.\{0-2\}\.mlp\.down_proj\.weight",
    ),
    "missing head": (
        drop("lm_head.weight"),
        [("missing", "lm_head.weight")],
        r"If the head shares the embedding, .* tie_word_embeddings",
    ),
    "misspelt": (
        renamed("down_proj", "donw_proj"),
        [
            ("missing", "layers.{0-2}.mlp.down.weight"),
            ("unclaimed", "model.layers.{0-2}.mlp.donw_proj.weight"),
        ],
        r"Did you mean 'model\.layers\.\{0-2\}\.mlp\.donw_proj\.weight'",
    ),
    "half merged": (
        drop("model.layers.0.self_attn.k_proj.weight", "model.layers.2.self_attn.k_proj.weight"),
        [("half_merged", "layers.{0,2}.attn.qkv.weight")],
        r"has q and v but not k: .*lacks model\.layers\.\{0,2\}\.self_attn\.k_proj\.weight",
    ),
    "half merged MLP": (
        drop("model.layers.2.mlp.up_proj.weight"),
        [("half_merged", "layers.2.mlp.gate_up.weight")],
        r"has gate but not up",
    ),
    "all of a fused one": (
        drop(*[f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"]),
        [("missing", "layers.0.attn.qkv.weight")],
        r"no model\.layers\.0\.self_attn\.q_proj\.weight, model.*v_proj\.weight",
    ),
    "extra": (
        put(vision__tower__weight=(2, 2)),
        [("unclaimed", "vision.tower.weight")],
        r"no rule uses it and no `ignore` gives a reason",
    ),
    "extra layer": (
        put(model__layers__3__mlp__down_proj__weight=(12, 8)),
        [("unclaimed", "model.layers.3.mlp.down_proj.weight")],
        r"its rule fills layers\.3\.mlp\.down, which the model does not have",
    ),
    "bias the model lacks": (
        put(**{f"model__layers__{i}__self_attn__q_proj__bias": (24,) for i in range(3)}),
        [("unclaimed", "model.layers.{0-2}.self_attn.q_proj.bias")],
        r"its rule fills layers\.\{0-2\}\.attn\.qkv, which the model has without 'bias'",
    ),
    "shape": (
        put(model__norm__weight=(13,)),
        [("shape", "model.norm.weight")],
        r"has the shape \[13\], but norm\.weight needs \[12\].*hidden_size = 12",
    ),
    "shape of a part": (
        put(model__layers__1__self_attn__q_proj__weight=(30, 12)),
        [("shape", "model.layers.1.self_attn.q_proj.weight")],
        r"\[30, 12\].*needs \[24, 12\].*q = 4 × 6; .*num_attention_heads = 4; .*head_dim = 6",
    ),
    "rank of a shape": (
        put(model__norm__weight=(12, 1)),
        [("shape", "model.norm.weight")],
        r"\[12, 1\], but norm\.weight needs \[12\]",
    ),
    "dtype": (
        lambda w: w.update({"model.norm.weight": torch.zeros(12, dtype=torch.int8)}),
        [("dtype", "model.norm.weight")],
        r"is stored as I8, which cannot fill norm\.weight",
    ),
    "float8 without its scales": (
        lambda w: w.update(
            {k: w[k].to(torch.float8_e4m3fn) for k in list(w) if "mlp.down_proj" in k}
        ),
        [("dtype", "model.layers.{0-2}.mlp.down_proj.weight")],
        r"F8_E4M3.*this one is quantised",
    ),
    "two things at once": (
        lambda w: (drop("model.norm.weight")(w), put(spare=(1,))(w)),
        [("missing", "norm.weight"), ("unclaimed", "spare")],
        r": 2 findings\n  missing: .*\n  unclaimed: ",
    ),
    "another prefix": (
        lambda w: w.update({f"thinker.{k}": w.pop(k) for k in list(w)}),
        [("map", "tiny")],
        r"every name of the checkpoint stands under 'thinker\.'.*Add 'thinker\.' to `prefixes`",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints(case: str, tmp_path: Path):
    change, expected, message = BROKEN[case]
    plan = make_plan(tmp_path, change)
    found = kinds(plan)
    assert found[: len(expected)] == expected
    assert len(found) == len(expected) or case == "another prefix"
    with pytest.raises(CheckpointError, match=message):
        plan.raise_for_findings()
    assert plan.totals.parameters_filled < 18 or not any(k == "missing" for k, _ in found)


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

BROKEN_MAPS: dict[str, tuple[str, str, list[tuple[str, str]], str]] = {
    "unknown target": (
        LINE,
        LINE + "    mlp.router: mlp.gate\n",
        [("unknown_target", "layers.{i}.mlp.router")],
        r"no such module.*tiny\.yaml:11",
    ),
    "misspelt target": (
        "    attn_norm:",
        "    atn_norm:",
        [
            ("missing", "layers.{0-2}.attn_norm.weight"),
            ("unknown_target", "layers.{i}.atn_norm"),
            ("unclaimed", "model.layers.{0-2}.input_layernorm.weight"),
        ],
        r"no rule of the weight map 'tiny' fills it.*Did you mean 'layers\.\{i\}\.atn_norm'",
    ),
    "dead rule for a container": (
        LINE,
        LINE + "    attn: self_attn\n",
        [("dead_rule", "layers.{i}.attn")],
        r"no parameters of its own.*layers\.\{i\}\.attn\.o",
    ),
    "dead rule, overridden": (
        "  norm: model.norm\n",
        "  norm: model.other\n  norm.weight: model.norm.weight\n",
        [("dead_rule", "norm")],
        r"rules for its parameters take them all",
    ),
    "one tensor for two": (
        "    mlp.down: mlp.down_proj\n",
        "    mlp.down: self_attn.o_proj\n",
        [("duplicate", "model.layers.{0-2}.self_attn.o_proj.weight")],
        r"two parameters want it: layers\.\{0-2\}\.attn\.o\.weight and layers\.\{0-2\}\.mlp\.down",
    ),
    "fused without parts": (
        "[mlp.gate_proj, mlp.up_proj]",
        "mlp.gate_up_proj",
        [("map", "layers.{0-2}.mlp.gate_up.weight")],
        r"fuses gate, up, and its rule names one source: add `parts: \[gate, up\]`",
    ),
    "too many sources": (
        "[mlp.gate_proj, mlp.up_proj]",
        "[mlp.gate_proj, mlp.up_proj, mlp.x]",
        [("map", "layers.{0-2}.mlp.gate_up.weight")],
        r"fuses gate, up, and its rule names 3 sources",
    ),
    "unknown part": (
        "[mlp.gate_proj, mlp.up_proj]",
        "{from: mlp.gate_up_proj, parts: [gaet, up]}",
        [("map", "layers.{0-2}.mlp.gate_up.weight")],
        r"has the parts gate, up, and no 'gaet'\. Did you mean 'gate'",
    ),
    "parts of what is not fused": (
        "mlp.down: mlp.down_proj",
        "mlp.down: {from: mlp.down_proj, parts: [a, b]}",
        [("map", "layers.{0-2}.mlp.down.weight")],
        r"is not fused",
    ),
    "merge into what is not fused": (
        "mlp.down: mlp.down_proj",
        "mlp.down: [mlp.down_proj, mlp.other]",
        [("map", "layers.{0-2}.mlp.down.weight")],
        r"is not fused, and its rule names 2 sources",
    ),
    "per head with grouped queries": (
        "[self_attn.q_proj, self_attn.k_proj, self_attn.v_proj]",
        "{from: self_attn.qkv, parts: [q, k, v], per: head}",
        [("map", "layers.{0-2}.attn.qkv.weight")],
        r"as many heads in every part, not q 4, k 2, v 2; .*`per: kv_head`",
    ),
    "blocks that do not divide": (
        "[mlp.gate_proj, mlp.up_proj]",
        "{from: mlp.gate_up, parts: [gate, up], per: 3}",
        [("map", "layers.{0-2}.mlp.gate_up.weight")],
        r"'gate' of 8 rows has no 3 equal blocks",
    ),
    "rope without heads": (
        "mlp.down: mlp.down_proj",
        "mlp.down: {from: mlp.down_proj, rope: interleaved_to_half}",
        [("map", "layers.{0-2}.mlp.down.weight")],
        r"`rope` reorders heads of an even width",
    ),
    "transposed shape": (
        "mlp.down: mlp.down_proj",
        "mlp.down: {from: mlp.down_proj, transpose: true}",
        [("shape", "model.layers.{0-2}.mlp.down_proj.weight")],
        r"\[12, 8\], but layers\.\{0-2\}\.mlp\.down\.weight needs \[8, 12\]",
    ),
    "a stack for what is no stack": (
        "  norm: model.norm\n",
        "  norm: 'model.norm.{e}'\n",
        [("map", "norm.weight")],
        r"\[12\], which is no stack",
    ),
    "tp: wrong kind": (
        "row: [attn.o, mlp.down]",
        "row: [mlp.down]",
        [("tp", "layers.{0-2}.attn.o.weight")],
        r"the map keeps it whole on every rank, its block splits it by row.*under tp\.row",
    ),
    "tp: other kind": (
        "column: [attn.qkv, mlp.gate_up], row: [attn.o, mlp.down]",
        "column: [mlp.gate_up, mlp.down], row: [attn.o, attn.qkv]",
        [("tp", "layers.{0-2}.attn.qkv.weight"), ("tp", "layers.{0-2}.mlp.down.weight")],
        r"the map splits it by row, its block splits it by column .*tiny\.yaml:13",
    ),
    "tp: not split": (
        "vocab: [embed, lm_head]",
        "vocab: [embed, lm_head, norm]",
        [("tp", "norm.weight")],
        r"the map splits it by vocab, its block keeps it whole.*Take 'norm' out of tp\.vocab",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MAPS)
def test_maps_that_do_not_fit_the_model(case: str, tmp_path: Path):
    old, new, expected, message = BROKEN_MAPS[case]
    assert old in MAP
    plan = make_plan(tmp_path, map_text=MAP.replace(old, new))
    consequences = ("missing", "unclaimed", "half_merged")
    found = kinds(plan)
    assert [f for f in found if f in expected or f[0] not in consequences] == expected
    with pytest.raises(CheckpointError, match=message):
        plan.raise_for_findings()


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
