"""The weight-map language: what it means, how maps extend each other, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from operation_cases import CASES as OPERATIONS
from operation_cases import text_of
from weights_harness import MAP, write_map

from assembler.errors import WeightMapError
from assembler.weights.map_options import RopeOption
from assembler.weights.map_schema import weight_map_schema
from assembler.weights.naming import Naming
from assembler.weights.weight_map import PACKAGE_ROOT, WeightMap, load_weight_map
from assembler.weights.yaml_marks import load_marked, parse_marked

SHIPPED = sorted(
    path.relative_to(PACKAGE_ROOT / "weight_maps").with_suffix("").as_posix()
    for path in (PACKAGE_ROOT / "weight_maps").rglob("*.yaml")
)


def rules(weight_map: WeightMap) -> dict[str, list[str]]:
    return {r.target.text: [s.pattern.text for s in r.sources] for r in weight_map.rules}


def test_scopes_join_targets_and_sources(tmp_path: Path):
    found = rules(write_map(tmp_path))
    assert found["layers.{i}.attn.qkv"] == [f"model.layers.{{i}}.self_attn.{x}_proj" for x in "qkv"]
    assert found["norm"] == ["model.norm"]
    assert len(found) == 8


def test_nested_scopes_and_every_option(tmp_path: Path):
    weight_map = write_map(
        tmp_path,
        """\
weights:
  layers.{i}:
    from: h.{i}
    moe.experts: {from: "moe.experts.{e}", gate_up: [w1, w3], down: w2}
    attn:
      qkv: {from: attn.c_attn, transpose: true, parts: [q, k, v], per: kv_head}
      o:
        from: attn.dense
        optional: true
    mlp.up: [{from: up, rope: interleaved_to_half}, gate]
""",
    )
    found = {r.target.text: r for r in weight_map.rules}
    assert rules(weight_map)["layers.{i}.moe.experts.gate_up"] == [
        "h.{i}.moe.experts.{e}.w1",
        "h.{i}.moe.experts.{e}.w3",
    ]
    [source] = found["layers.{i}.attn.qkv"].sources
    assert (source.parts, source.per, source.transpose) == (("q", "k", "v"), "kv_head", True)
    assert found["layers.{i}.attn.o"].optional and not found["layers.{i}.attn.qkv"].optional
    assert [s.rope for s in found["layers.{i}.mlp.up"].sources] == [
        RopeOption("interleaved_to_half"),
        None,
    ]
    assert found["layers.{i}.attn.o"].where.endswith("tiny.yaml:7")


def test_tp_entries_drop_the_layer_or_name_the_whole_target(tmp_path: Path):
    text = MAP.replace("row: [attn.o, mlp.down]", 'row: ["layers.{i}.attn.o", mlp.down]')
    kinds = {r.target.text: r.tp for r in write_map(tmp_path, text).rules}
    assert kinds["layers.{i}.attn.qkv"] == "column"
    assert kinds["layers.{i}.attn.o"] == kinds["layers.{i}.mlp.down"] == "row"
    assert kinds["embed"] == "vocab"
    assert kinds["norm"] == kinds["layers.{i}.attn_norm"] == "replicated"


def test_extends_merges_by_target(tmp_path: Path):
    write_map(tmp_path)
    child = write_map(
        tmp_path,
        """\
extends: tiny
prefixes: [""]
weights:
  layers.{i}:
    attn.q_norm: self_attn.q_norm
    mlp.gate_up: {from: mlp.gate_up_proj, parts: [gate, up]}
    attn.o: null
  layers.{i}.mlp.down: elsewhere.{i}.down
  lm_head: null
tp: {column: [mlp.down]}
""",
        "child",
    )
    found = rules(child)
    assert found["layers.{i}.attn.q_norm"] == ["model.layers.{i}.self_attn.q_norm"]
    assert found["layers.{i}.mlp.gate_up"] == ["model.layers.{i}.mlp.gate_up_proj"]
    assert found["layers.{i}.mlp.down"] == ["elsewhere.{i}.down"]
    assert "layers.{i}.attn.o" not in found and "lm_head" not in found
    assert found["embed"] == ["model.embed_tokens"]
    assert {r.target.text: r.tp for r in child.rules}["layers.{i}.mlp.down"] == "column"
    assert child.prefixes == (Naming(),) and [i.reason for i in child.ignore]
    assert [path.name for path in child.files] == ["child.yaml", "tiny.yaml"]


def test_a_whole_scope_can_be_deleted_or_moved(tmp_path: Path):
    write_map(tmp_path)
    text = "extends: tiny\nweights:\n  layers.{i}: {from: 'h.{i}'}\n"
    moved = write_map(tmp_path, text, "moved")
    assert rules(moved)["layers.{i}.attn.o"] == ["h.{i}.self_attn.o_proj"]
    gone = write_map(tmp_path, "extends: tiny\nweights:\n  layers.{i}: null\n", "gone")
    assert set(rules(gone)) == {"embed", "norm", "lm_head"}


def test_ignores_merge_and_can_be_taken_out(tmp_path: Path):
    write_map(tmp_path)
    child = write_map(
        tmp_path,
        'extends: tiny\nignore: {"*.rotary_emb.inv_freq": null, "*.bias": not used}\n',
        "child",
    )
    [ignore] = child.ignore
    assert ignore.matches("model.layers.0.attn.bias") and not ignore.matches("biases")


def test_names_are_found_along_the_search_path(tmp_path: Path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    write_map(theirs, name="base")
    write_map(theirs, name="sub/base")
    # A map may extend the next one of its own name.
    (mine / "weight_maps").mkdir(parents=True)
    (mine / "weight_maps" / "base.yaml").write_text("extends: base\nweights: {layer_norm: extra}\n")
    found = load_weight_map("base", [mine, theirs])
    assert len(found.rules) == 9 and len(found.files) == 2
    assert len(load_weight_map("sub/base", [mine, theirs]).rules) == 8
    assert len(load_weight_map(theirs / "weight_maps" / "base.yaml").rules) == 8
    with pytest.raises(WeightMapError, match=r"no weight map 'bse'.*Did you mean 'base'"):
        load_weight_map("bse", [mine, theirs])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_maps_load_and_fit_the_schema(name: str):
    assert load_weight_map(name).rules
    path = PACKAGE_ROOT / "weight_maps" / f"{name}.yaml"
    Draft202012Validator(weight_map_schema()).validate(load_marked(path).data)
    modeline = path.read_text().splitlines()[0]
    assert modeline.endswith("docs/schema/weight_map.schema.json")


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_schema_knows_every_operation(name: str):
    data = parse_marked(text_of(OPERATIONS[name]), "map.yaml").data
    assert [*Draft202012Validator(weight_map_schema()).iter_errors(data)] == []


def test_the_schema_refuses_what_the_reader_refuses():
    Draft202012Validator.check_schema(weight_map_schema())
    validator = Draft202012Validator(weight_map_schema())
    for wrong in (
        {"weight": {}},
        {"tp": {"colum": []}},
        {"weights": {"a": {"from": "b", "per": 0, "parts": ["x"]}}},
        {"prefixes": ["model"]},
        {"weights": {"a": {"from": "b", "transposed": True}}},
        {"weights": {"a": {"from": "b", "fill": 0}}},
        {"weights": {"a": {"any": ["b"]}}},
        {"weights": {"a": {"from": "b", "rope": {"dims": 4}}}},
        {"weights": {"a": [{"from": "b", "dtype": "float32"}]}},
        {"ignore": {"x": {"optional": True}}},
        {"config": {"a": {"valeu": 1}}},
    ):
        assert not validator.is_valid(wrong), wrong


LAYER = "weights:\n  layers.{i}:\n    from: model.layers.{i}\n"


def test_all_problems_of_a_map_come_at_once(tmp_path: Path):
    text = LAYER + "    a: 3\n    b: {from: c, per: head}\nignore: {'*': why}\nprefixes: [x]\n"
    with pytest.raises(WeightMapError) as error:
        write_map(tmp_path, text)
    lines = str(error.value).splitlines()
    assert [line.split(".yaml:")[1].split(":")[0] for line in lines] == ["4", "5", "6", "7"]


def test_misspelt_options_come_with_all_other_problems(tmp_path: Path):
    text = LAYER + "    a: 3\n    b: {from: c, transpos: true}\n    {x: d\n"
    text = text.replace("{x:", "'{x':") + "    e: {from: f, per: hed, parts: [q]}\n"
    with pytest.raises(WeightMapError) as error:
        write_map(tmp_path, text)
    lines = str(error.value).splitlines()
    assert sorted(line.split(".yaml:")[1].split(":")[0] for line in lines) == ["4", "5", "6", "7"]
    with pytest.raises(WeightMapError, match=r":1: unknown key 'weigths'.*\n.*:2: 'tp' is a mapp"):
        write_map(tmp_path, "weigths: {a: b}\ntp: [a]\n")


def test_a_circle_of_extends(tmp_path: Path):
    write_map(tmp_path, MAP, "a")
    (tmp_path / "weight_maps" / "b.yaml").write_text("extends: a\n")
    with pytest.raises(WeightMapError, match=r"in a circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        write_map(tmp_path, "extends: b\n" + MAP, "a")


def test_an_inherited_tp_entry_may_lose_its_rule(tmp_path: Path):
    write_map(tmp_path)
    child = write_map(tmp_path, "extends: tiny\nweights: {lm_head: null}\n", "child")
    assert "lm_head" not in rules(child)


def test_gguf_config_fields(tmp_path: Path):
    weight_map = write_map(
        tmp_path,
        """\
weights: {a: b}
config:
  size: x.size
  gone: x.gone
  kind: {value: llama}
  tied: {absent: output.weight}
  bias: {present: q.bias}
  vocab: {first_of: [x.vocab, {length: x.tokens}]}
  neither: {first_of: [x.gone, x.gone_too]}
  rope: {fields: {type: x.rope, factor: x.gone}}
  empty: {fields: {type: x.gone}}
""",
    )
    metadata = {"x.size": 8, "x.tokens": ["a", "b"], "x.rope": "linear"}
    assert weight_map.translate_config(metadata, {"q.bias": None}) == {
        "size": 8,
        "kind": "llama",
        "tied": True,
        "bias": True,
        "vocab": 2,
        "rope": {"type": "linear"},
    }


def test_gguf_config_extends_field_by_field(tmp_path: Path):
    write_map(tmp_path, "weights: {a: b}\nconfig: {x: k.x, y: k.y}\n")
    child = write_map(tmp_path, "extends: tiny\nconfig: {y: {value: 2}}\n", "child")
    assert child.translate_config({"k.x": 1, "k.y": 1}, {}) == {"x": 1, "y": 2}
