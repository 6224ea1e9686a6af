"""The coverage report: folded rows, totals, the last line, and the same content as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from weights_harness import decoder, save, several, tensors, write_map

from assembler.blocks.parallel import ShardDim, TensorParallel
from assembler.weights.fold import fold_names, format_indices, merge_names
from assembler.weights.plan import plan_load
from assembler.weights.report import CoverageReport, coverage_report, format_bytes
from assembler.weights.report_table import render_report


def report(tmp_path: Path, weights: dict[str, torch.Tensor], **options: object) -> CoverageReport:
    plan = plan_load(write_map(tmp_path), decoder(**options), save(tmp_path, weights))
    return coverage_report(plan)


def drawn(item: CoverageReport, width: int = 100) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(render_report(item))
    return out.getvalue().rstrip().splitlines()


def test_rows_are_folded_over_layers(tmp_path: Path):
    found = report(tmp_path, tensors(qkv_bias=True), qkv_bias=True)
    rows = {row.target: row for row in found.rows}
    assert list(rows) == [
        "embed",
        "layers.{0-2}.attn_norm",
        "layers.{0-2}.attn.qkv",
        "layers.{0-2}.attn.qkv.bias",
        "layers.{0-2}.attn.o",
        "layers.{0-2}.mlp.gate_up",
        "layers.{0-2}.mlp.down",
        "norm",
        "lm_head",
    ]
    qkv = rows["layers.{0-2}.attn.qkv"]
    assert qkv.sources == "model.layers.{0-2}.self_attn.{q,k,v}_proj"
    assert (qkv.count, qkv.shape, qkv.dtype, qkv.nbytes) == (3, (48, 12), "F32", 3 * 48 * 12 * 4)
    assert (
        rows["layers.{0-2}.attn.qkv.bias"].sources
        == "model.layers.{0-2}.self_attn.{q,k,v}_proj.bias"
    )


def test_layers_that_differ_stand_apart(tmp_path: Path):
    weights = tensors()
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name].bfloat16()
    rows = {row.target: row.dtype for row in report(tmp_path, weights).rows}
    assert rows["layers.{0,2}.mlp.down"] == "F32" and rows["layers.1.mlp.down"] == "BF16"


def test_a_complete_report_ends_in_one_line(tmp_path: Path):
    found = report(tmp_path, tensors())
    assert found.complete
    assert found.summary == "27/27 tensors, 100 % of bytes, 18/18 parameters"
    lines = drawn(found)
    assert lines[-1] == found.summary
    assert max(map(len, lines[1:])) <= 100
    assert any("self_attn.{q,k,v}_proj" in line and "48×12" in line for line in lines)


def test_findings_ties_and_ignored_tensors_are_shown(tmp_path: Path):
    weights = tensors()
    del weights["model.layers.0.self_attn.k_proj.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    found = report(tmp_path, weights, tied=True)
    assert not found.complete
    assert found.summary == "27/27 tensors, 100 % of bytes, 16/17 parameters: 1 finding"
    text = "\n".join(drawn(found, 200))
    assert "tied: lm_head.weight = embed.weight (loading compares lm_head.weight)" in text
    assert "inv_freq (12 B): recomputed from the config" in text
    assert "half_merged: layers.0.attn.qkv.weight: has q and v but not k" in text


def test_hundreds_of_ignored_tensors_do_not_fill_the_terminal(tmp_path: Path):
    weights = tensors()
    for letter in "abcdefghijklmnopqrstuvwxyz":
        weights[f"vision.{30 * letter}.rotary_emb.inv_freq"] = torch.zeros(3)
    found = report(tmp_path, weights)
    [line] = [line for line in drawn(found, 999) if line.startswith("ignored: ")]
    assert line.startswith(f"ignored: vision.{{{30 * 'a'},{30 * 'b'},")
    assert line.endswith(",... (all: format=json) (312 B): recomputed from the config")
    assert len(line) < 400 and 30 * "z" not in line
    assert 30 * "z" in found.to_json()["ignored"][0]["tensors"]


def test_only_everything_is_100_percent(tmp_path: Path):
    weights = tensors()
    weights["spare"] = torch.zeros(1)
    assert ", 99.9 % of bytes, " in report(tmp_path, weights).summary


def test_json_holds_what_the_table_shows(tmp_path: Path):
    weights = tensors()
    weights["spare"] = torch.zeros(1)
    found = report(tmp_path, weights)
    data = json.loads(json.dumps(found.to_json()))
    assert data["complete"] is False and data["summary"] == found.summary
    assert [row["target"] for row in data["rows"]] == [row.target for row in found.rows]
    assert data["findings"][0]["kind"] == "unclaimed"
    assert data["totals"]["tensors"] == 28 and data["totals"]["tensors_covered"] == 27


def test_constants_and_types_that_are_kept_are_shown(tmp_path: Path):
    layouts = {name: ShardDim("replicated", (4, 2)) for name in ("x", "y", "z")}
    text = "weights:\n  x: {from: x, pad: 1}\n  y: {fill: 0}\n  z: {from: z, dtype: float32}\n"
    index = save(tmp_path, {"x.weight": torch.zeros(3, 2), "z.weight": torch.zeros(4, 2)})
    found = coverage_report(plan_load(write_map(tmp_path, text), several(layouts), index))
    rows = {row.target: (row.sources, row.ops) for row in found.rows}
    assert rows == {
        "x": ("x", ("rows 3:4 = 1",)),
        "y": ("", ("= 0",)),
        "z": ("z", ("kept in float32",)),
    }
    assert found.complete and "y" in "\n".join(drawn(found))


def test_a_rank_of_a_group(tmp_path: Path):
    found = report(tmp_path, tensors(), tp=TensorParallel(1, 2))
    rows = {row.target: row for row in found.rows}
    assert rows["layers.{0-2}.attn.qkv"].split == "column"
    assert rows["layers.{0-2}.attn.o"].ops == ("columns 12:24",)
    assert rows["embed"].nbytes == 20 * 12 * 4 // 2
    lines = drawn(found)
    assert max(map(len, lines[1:])) <= 100
    assert "tp=2" in "\n".join(lines) and "rank 1 of 2" in found.title


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (["a.0.w", "a.1.w", "a.2.w"], ["a.{0-2}.w"]),
        (["a.0.w", "a.2.w", "a.3.w", "b"], ["a.{0,2-3}.w", "b"]),
        (["a.7.w"], ["a.7.w"]),
        ([f"l.{i}.e.{e}.w" for i in range(2) for e in range(3)], ["l.{0-1}.e.{0-2}.w"]),
        (["l.0.e.0", "l.0.e.1", "l.1.e.0"], ["l.0.e.{0-1}", "l.1.e.0"]),
        (["a.10.w", "a.9.w"], ["a.{9-10}.w"]),
        (["a.{}.b", "a.0.b"], ["a.{}.b", "a.0.b"]),
        ([], []),
    ],
)
def test_folding_names(names: list[str], texts: list[str]):
    folds = fold_names(names)
    assert [fold.text for fold in folds] == texts
    assert sorted(name for fold in folds for name in fold.names) == sorted(names)


def test_indices_and_names_in_few_words():
    assert format_indices([3, 1, 0, 7, 2]) == "0-3,7"
    assert merge_names(["a.q_proj.w", "a.k_proj.w"]) == "a.{q,k}_proj.w"
    assert merge_names(["m.w1", "m.w3"]) == "m.{w1,w3}"
    assert merge_names(["a", "b"]) == "a, b"
    assert merge_names(["a.b"]) == "a.b"
    assert merge_names(["a.x", "a.x.y"]) == "a.{x,x.y}"
    assert [format_bytes(n) for n in (0, 999, 1000, 1.5e9, 2e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 GB",
        "2000.0 TB",
    ]
