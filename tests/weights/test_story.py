"""One tensor's story: what is told of every kind of name, held against what loading does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from quantized_cases import fp8
from weights_harness import CONFIG, MAP, SIZES, decoder, save, several, tensors, write_map

from assembler.blocks.parallel import Part, ShardDim, TensorParallel
from assembler.errors import CheckpointError
from assembler.weights.fold import covers_any
from assembler.weights.index import read_checkpoint_index
from assembler.weights.plan import plan_load
from assembler.weights.story import TensorStory
from assembler.weights.story_text import story_lines
from assembler.weights.storyteller import Storyteller
from assembler.weights.weight_map import load_weight_map

Q = SIZES.heads * SIZES.head_dim
KV = SIZES.kv_heads * SIZES.head_dim


def teller(tmp_path: Path, weights: dict | None = None, tp: int = 1, **options) -> Storyteller:
    weight_map = write_map(tmp_path)
    index = save(tmp_path, tensors() if weights is None else weights)
    ranks = [
        plan_load(weight_map, decoder(tp=TensorParallel(rank, tp), **options), index)
        for rank in range(tp)
    ]
    whole = plan_load(weight_map, decoder(**options), index)
    return Storyteller(weight_map, index, whole, ranks if tp > 1 else ())


def text(story: TensorStory) -> str:
    return "\n".join(story_lines(story))


def test_a_tensor_on_disk(tmp_path: Path):
    made = teller(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"
    story = made.tell(name)
    assert story.sides == ("checkpoint",) and story.complete
    [flow] = story.flows
    info = made.index.tensors[name]
    place = (flow.source.file, flow.source.start, flow.source.stop)
    assert place == (str(info.file), info.offset, info.offset + KV * SIZES.hidden * 4)
    with open(flow.source.file, "rb") as file:  # the bytes are where the story says
        file.seek(flow.source.start)
        stored = torch.frombuffer(bytearray(file.read(info.nbytes)), dtype=torch.float32)
    assert torch.equal(stored, tensors()[name].flatten())
    assert (flow.source.dtype, flow.source.shape) == ("F32", (KV, SIZES.hidden))
    assert flow.into.parameter == "layers.1.attn.qkv.weight" and flow.into.part == "k"
    assert flow.into.rows == ((0, Q, Q + KV),) and flow.into.split == "column"
    assert flow.rule.where.endswith("tiny.yaml:7") and flow.rule.through == ()
    assert "layers.{i}.attn.qkv ← model.layers.{i}.self_attn.q_proj, " in flow.rule.text
    assert f"rows {Q}:{Q + KV} of layers.1.attn.qkv.weight" in text(story)


@pytest.mark.parametrize(
    ("name", "full", "sources"),
    [
        ("layers.2.attn.qkv.weight", "layers.2.attn.qkv.weight", "qkv"),
        ("layers.2.attn.qkv", "layers.2.attn.qkv.weight", "qkv"),
        ("layers.2.attn.qkv.k", "layers.2.attn.qkv.k", "k"),
        ("layers.2.attn.qkv.k.weight", "layers.2.attn.qkv.k.weight", "k"),
        ("layers.2.attn.qkv.weight.k", "layers.2.attn.qkv.weight.k", "k"),
    ],
)
def test_names_of_the_model(tmp_path: Path, name: str, full: str, sources: str):
    story = teller(tmp_path).tell(name)
    assert (story.name, story.sides) == (full, ("model",))
    wanted = [f"model.layers.2.self_attn.{part}_proj.weight" for part in sources]
    assert [flow.source.name for flow in story.flows] == wanted  # in the order of the parts


def test_a_module_with_a_bias_tells_of_both(tmp_path: Path):
    made = teller(tmp_path, tensors(qkv_bias=True), qkv_bias=True)
    flows = made.tell("layers.0.attn.qkv.q").flows
    assert [f.source.name.rpartition(".")[2] for f in flows] == ["weight", "bias"]


def test_a_tensor_that_fills_several_parts_is_named_once(tmp_path: Path):
    mine = write_map(tmp_path, "weights:\n  x: {from: ab, parts: [v, u], per: 2}\n")
    index = save(tmp_path, {"ab.weight": torch.zeros(6, 2)})
    model = several({"x": ShardDim("replicated", (6, 2), parts=(Part("u", 4), Part("v", 2)))})
    story = Storyteller(mine, index, plan_load(mine, model, index)).tell("ab.weight")
    assert [flow.into.part for flow in story.flows] == ["u", "v"]
    assert [step.op for step in story.flows[0].steps][1] == "of dim 1 1:3"
    labels = [line.split()[0] for line in text(story).splitlines()[1:] if line]
    chain = ["op", "op", "op", "fills"]
    assert labels == ["tensor", "file", "rule", *chain, *chain]


def test_a_name_that_both_sides_have(tmp_path: Path):
    story = teller(tmp_path).tell("lm_head.weight")
    assert story.sides == ("checkpoint", "model") and len(story.flows) == 1


@pytest.mark.parametrize("given", ["model.norm", "language_model.model.norm.weight"])
def test_the_prefix_and_the_leaf_may_be_left_out(tmp_path: Path, given: str):
    weights = {f"language_model.{name}": value for name, value in tensors().items()}
    story = teller(tmp_path, weights).tell(given)
    assert story.name == "language_model.model.norm.weight"
    assert story.flows[0].rule.text == "norm ← model.norm"


def test_names_nobody_has(tmp_path: Path):
    made = teller(tmp_path)
    with pytest.raises(CheckpointError, match=r"mean 'model\.layers\.2\.mlp\.down_proj\.weight'"):
        made.tell("model.layers.2.mlp.dwon_proj.weight")
    with pytest.raises(
        CheckpointError, match=r"neither .* nor .*Did you mean 'layers\.1\.attn\.qk"
    ):
        made.tell("layers.1.attn.qvk")
    with pytest.raises(
        CheckpointError, match=r"'layers\.1\.attn' holds several: .* layers\.1\.attn\.qkv, "
    ):
        made.tell("layers.1.attn")


def test_what_the_ranks_take_adds_up(tmp_path: Path):
    story = teller(tmp_path, tp=2).tell("layers.0.attn.qkv")
    for flow in story.flows:
        rows = [row for share in flow.ranks for row in range(*share.taken[1:])]
        assert rows == list(range(flow.source.shape[0]))
        assert sum(share.nbytes for share in flow.ranks) == flow.source.stop - flow.source.start
    assert story.flows[1].ranks[1].rows == ((0, Q // 2, Q // 2 + KV // 2),)
    down = teller(tmp_path, tp=2).tell("layers.0.mlp.down").flows[0]
    assert down.into.split == "row" and down.ranks[1].taken == (1, 4, 8)
    assert "rank 1: columns 4:8" in text(teller(tmp_path, tp=2).tell("layers.0.mlp.down"))


def test_what_replicates(tmp_path: Path):
    made = teller(tmp_path, tp=4)
    lines = text(made.tell("layers.0.attn.qkv.k"))
    assert "ranks 0-1: rows 0:6 of 'k'" in lines and "(replicated 2 times)" in lines
    norm = made.tell("norm")
    assert "replicated: each of the 4 ranks holds all of it" in text(norm)
    assert [share.nbytes for share in norm.flows[0].ranks] == [SIZES.hidden * 4] * 4


def test_what_is_ignored_or_tied(tmp_path: Path):
    weights = tensors()
    weights["model.layers.0.rotary_emb.inv_freq"] = torch.zeros(3)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    made = teller(tmp_path, weights, tied=True)
    story = made.tell("model.layers.0.rotary_emb.inv_freq")
    assert (story.ignored, story.flows, story.rule) == ("recomputed from the config", (), None)
    line = MAP.splitlines().index("ignore:") + 2
    assert story.ignored_at.endswith(f"tiny.yaml:{line}")
    assert f"recomputed from the config ({story.ignored_at})" in text(story)
    ties = made.tell("lm_head.weight").ties
    assert ties[0] == "lm_head.weight shares the memory of embed.weight"
    assert "is read only to see that it equals model.embed_tokens.weight" in ties[1]
    assert made.tell("embed").ties == ties[:1]


def test_what_is_wrong_with_it(tmp_path: Path):
    weights = tensors()
    for i in range(3):
        del weights[f"model.layers.{i}.self_attn.k_proj.weight"]
    weights["spare"] = torch.zeros(1)
    made = teller(tmp_path, weights)
    half = made.tell("layers.1.attn.qkv")
    assert not half.complete and half.flows == ()
    assert [finding.kind for finding in half.findings] == ["half_merged"]
    assert half.rule.where.endswith("tiny.yaml:7")
    # Of a tensor that would fill it, had its fellow been there, the same is said.
    assert made.tell("model.layers.1.self_attn.q_proj.weight").findings == half.findings
    assert [finding.kind for finding in made.tell("spare").findings] == ["unclaimed"]
    assert made.tell("norm").complete


def test_which_of_several_ways_through_which_map(tmp_path: Path):
    base = "weights:\n  x:\n    any:\n      - [a, b]\n      - {from: ab, parts: [u, v]}\n"
    write_map(tmp_path, base, "base")
    write_map(tmp_path, "extends: base\n", "middle")
    mine = write_map(tmp_path, "extends: middle\nweights: {y: {fill: 2, dtype: float32}}\n", "mine")
    assert mine == load_weight_map("mine", [tmp_path])
    index = save(tmp_path, {"ab.weight": torch.zeros(6, 2)})
    parts = ShardDim("replicated", (6, 2), parts=(Part("u", 4), Part("v", 2)))
    model = several({"x": parts, "y": ShardDim("replicated", (3,))})
    made = Storyteller(mine, index, plan_load(mine, model, index))
    flow = made.tell("x.v").flows[0]
    assert (flow.rule.text, flow.rule.way) == ("x ← ab", "2 of 2")
    assert [(step.op, step.shape) for step in flow.steps] == [("rows 4:6", (2, 2))]
    assert [Path(name).name for name in flow.rule.through] == ["mine.yaml", "middle.yaml"]
    assert "base.yaml:2, through `extends` of " in text(made.tell("x.v"))
    assert "y.weight = 2" in text(made.tell("y"))


def test_experts_that_go_one_way_are_told_once(tmp_path: Path):
    mine = write_map(tmp_path, "weights:\n  x: '{e}.w'\n")
    index = save(tmp_path, {f"{e}.w.weight": torch.zeros(4, 2) for e in range(9)})
    model = several({"x": ShardDim("replicated", (9, 4, 2))})
    story = Storyteller(mine, index, plan_load(mine, model, index)).tell("x")
    assert len(story.flows) == 9 and story.flows[7].into.rows == ((0, 7, 8),)
    assert "  fills     dim 0 0:1 of x.weight 9×4×2;" in text(story)
    lines = text(story).splitlines()
    assert sum(line.startswith("  file ") for line in lines) == 1
    assert "  likewise  {1-8}.w.weight" in lines


def test_a_weight_that_is_two_tensors(tmp_path: Path):
    disk, _ = fp8(tensors(), (4, 5))
    save(tmp_path, disk)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [4, 5]}
    (tmp_path / "config.json").write_text(
        json.dumps(CONFIG | {"quantization_config": quantization})
    )
    index, mine = read_checkpoint_index(tmp_path), write_map(tmp_path)
    made = Storyteller(mine, index, plan_load(mine, decoder(), index))
    name = "model.layers.0.self_attn.k_proj.weight"
    [flow] = made.tell(name).flows
    assert (flow.source.name, flow.scales.name) == (name, f"{name}_scale_inv")
    assert flow.steps[0].op == "dequantise F8_E4M3 times its scales (F32) to float32"
    assert flow.loss and made.tell(name).complete
    assert made.tell(f"{name}_scale_inv").flows == (flow,)
    assert f"  scales    {name}_scale_inv 3×3 F32" in text(made.tell("layers.0.attn.qkv.k"))


@pytest.mark.parametrize(
    ("words", "name", "covered"),
    [
        ("layers.{0-2,7}.w: has q", "layers.7.w", True),
        ("layers.{0-2,7}.w: has q", "layers.3.w", False),
        ("lacks a.{0-1}.b, a.3.b", "a.3.b", True),
        ("'a.b'.", "a.b", True),
        ("a.b.c", "a.b", False),
        ("l.{0-1}.e.{0-2}.w", "l.1.e.2.w", True),
        ("l.{0-1}.e.{0-2}.w", "l.2.e.2.w", False),
        ("rows 0:4 of l.{i}.w", "l.0.w", False),
    ],
)
def test_whether_folded_names_speak_of_one(words: str, name: str, covered: bool):
    assert covers_any(words, [name]) == covered
