"""Confs over several roots, what `defaults` gives, and where errors say things stand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from toy_confs import BASE, Workspace

from assembler.errors import SpecError
from assembler.model.compose import open_conf
from assembler.model.conf_files import PACKAGE_ROOT, conf_names, find_conf, search_roots
from assembler.model.inherit import overlay


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": [1, 2, 3]}, {"a": [4]}, {"a": [4]}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": "${hf_rope:}"}, {"a": {"theta": 2}}, {"a": {"theta": 2}}),
        (
            {"a": {"block": "P", "x": 1}},
            {"a": {"block": "P", "y": 2}},
            {"a": {"block": "P", "x": 1, "y": 2}},
        ),
        ({"a": {"block": "P", "x": 1}}, {"a": {"block": "Q"}}, {"a": {"block": "Q"}}),
    ],
)
def test_overlay(base: dict, over: dict, expected: dict) -> None:
    before = repr((base, over))
    assert overlay(base, over) == expected
    assert repr((base, over)) == before


def test_a_conf_inherits_through_a_chain(ws: Workspace) -> None:
    ws.write("middle", "defaults: [base, _self_]\nlayers: {blocks: {mlp: {size: 24}}}")
    spec = ws.spec("defaults: [middle, _self_]\nlayers: {blocks: {mlp: {activation: relu}}}")
    mlp = spec.kinds["layer"].blocks["mlp"]
    assert (mlp.size, mlp.activation) == (24, "relu")
    assert spec.kinds["layer"].wiring == ("x = x + attn(attn_norm(x))", "x = x + mlp(mlp_norm(x))")


def test_self_is_last_unless_it_is_placed(ws: Workspace) -> None:
    assert ws.spec("defaults: [base]\nhidden_size: 16").hidden_size == 16
    assert ws.spec("defaults: [base, _self_]\nhidden_size: 16").hidden_size == 16
    assert ws.spec("defaults: [_self_, base]\nhidden_size: 16").hidden_size == 8


def test_a_later_parent_wins_and_a_shared_one_counts_once(ws: Workspace) -> None:
    ws.write("wide", "defaults: [base, _self_]\nhidden_size: 16\nvocab_size: 5")
    ws.write("wordy", "defaults: [base, _self_]\nvocab_size: 99")
    spec = ws.spec("defaults: [wide, wordy, _self_]")
    assert (spec.hidden_size, spec.vocab_size) == (16, 99)


def test_a_part_of_a_model_is_for_others_to_build_on(ws: Workspace) -> None:
    ws.write("_wide_mlp", "layers: {blocks: {mlp: {size: 40}}}")
    spec = ws.spec("defaults: [base, _wide_mlp, _self_]\nvocab_size: 7")
    assert (spec.kinds["layer"].blocks["mlp"].size, spec.vocab_size) == (40, 7)
    assert conf_names([ws.root]) == ["base", "my"]
    with pytest.raises(SpecError, match=r"Did you mean '_wide_mlp'.* Available: _wide_mlp, base"):
        ws.spec("defaults: [base, wide_mlp, _self_]")
    with pytest.raises(SpecError, match=r"no conf named 'wide_mlp'\. Available: base, my\."):
        ws.spec(conf="wide_mlp")


def test_null_drops_an_inherited_block(ws: Workspace) -> None:
    spec = ws.spec(
        """\
        defaults: [base, _self_]
        layers:
          blocks: {mlp_norm: null}
          wiring: ["x = x + attn(attn_norm(x)) + mlp(attn_norm(x))"]
        norm: null
        wiring: [x = layers(embed(tokens)), logits = lm_head(x)]
        """
    )
    assert list(spec.kinds["layer"].blocks) == ["attn_norm", "attn", "mlp"]
    assert list(spec.blocks) == ["embed", "lm_head"]
    ws.build(spec)


def test_another_block_takes_nothing_over(ws: Workspace) -> None:
    spec = ws.spec(
        "defaults: [base, _self_]\nlayers: {blocks: {mlp_norm: {block: LayerNorm, bias: false}}}"
    )
    norm = spec.kinds["layer"].blocks["mlp_norm"]
    assert (norm.block, norm.eps, norm.bias) == ("LayerNorm", 1e-5, False)


def test_roots_in_order_of_precedence(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, from_env, here = (tmp_path / name for name in ("named", "env", "here"))
    for root in (named, from_env, here):
        (root / "conf").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("ASSEMBLER_PATH", f"{from_env}")
    assert search_roots([f"file://{named}"]) == (named, here, from_env, PACKAGE_ROOT)

    for root in (named, here, from_env):
        ws.write("llama", f"checkpoint: {root.name}", root)
    for root in (named, here, from_env):
        found = find_conf("llama", search_roots([named] if named.is_dir() else []))
        assert found.marked.data == {"checkpoint": root.name}
        found.path.unlink()
    assert find_conf("llama", search_roots([named])).path == PACKAGE_ROOT / "conf" / "llama.yaml"


def test_a_parent_comes_from_the_best_root(ws: Workspace, tmp_path: Path) -> None:
    package, user = tmp_path / "package", tmp_path / "user"
    ws.write("base", BASE, package)
    ws.write("child", "defaults: [base, _self_]\nvocab_size: 5", package)
    ws.write("base", BASE.replace("hidden_size: 8", "hidden_size: 32"), user)
    for conf in ("child", package / "conf" / "child.yaml"):
        spec = ws.spec(conf=conf, roots=[user, package])
        assert (spec.hidden_size, spec.vocab_size) == (32, 5)


def test_a_path_inside_a_conf_folder_brings_its_root(ws: Workspace, tmp_path: Path) -> None:
    ws.write("other", "hidden_size: 24", tmp_path / "mine")
    path = ws.write("my", "defaults: [base, other, _self_]", tmp_path / "mine")
    assert open_conf(path, [ws.root])[1] == (tmp_path / "mine", ws.root)
    assert ws.spec(conf=path).hidden_size == 24


@pytest.mark.parametrize("name", ["./lone/my.yaml", "lone/my.yml"])
def test_a_path_outside_a_conf_folder_sees_its_neighbours(ws: Workspace, name: str) -> None:
    folder = ws.root / "lone"
    folder.mkdir()
    (folder / "sizes.yaml").write_text("hidden_size: 24")
    (ws.root / name).write_text("defaults: [base, sizes, _self_]\nvocab_size: 7")
    spec = ws.spec(conf=name)
    assert (spec.name, spec.hidden_size, spec.vocab_size) == ("my", 24, 7)


def test_a_wrong_search_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSEMBLER_PATH", "/nowhere/at/all")
    with pytest.raises(SpecError) as caught:
        search_roots(["/no/such"])
    assert str(caught.value).splitlines() == [
        "hydra.searchpath names '/no/such', which is not a folder",
        "$ASSEMBLER_PATH names '/nowhere/at/all', which is not a folder",
    ]


def test_shipped_confs_are_found_from_anywhere(ws: Workspace) -> None:
    assert {"llama", "qwen3", "gpt2"} <= set(conf_names(search_roots()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: [my, _self_]", "conf/my.yaml:1: defaults go in a circle: my -> my."),
        (
            "weight_map: x\ndefaults: [loop, _self_]",
            "conf/loop.yaml:1: defaults go in a circle: my -> loop -> my.",
        ),
        ("defaults: [bse]", "conf/my.yaml:1: no conf named 'bse'. Did you mean 'base'?"),
        ("defaults: base", "conf/my.yaml:1: defaults must be a list of conf names"),
        ("defaults: [{base: x}]", "conf/my.yaml:1: defaults must be a list of conf names"),
        ("defaults: [base@pkg]", "conf/my.yaml:1: no conf named 'base@pkg'."),
        ("a: [1,\nb: 2", "conf/my.yaml:2: not valid YAML:"),
        ("a: 1\na: 2", "conf/my.yaml:2: the key 'a' is already given on line 1"),
        ("- a", "conf/my.yaml: a conf is a mapping of fields"),
        ("", "conf/my.yaml: a conf is a mapping of fields"),
        ("embed: !!python/name:os.system ''", "conf/my.yaml:1: the tag"),
    ],
)
def test_files_that_cannot_be_read(ws: Workspace, text: str, message: str) -> None:
    ws.write("loop", "defaults: [my]")
    with pytest.raises(SpecError) as caught:
        ws.spec(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("bsae", "no conf named 'bsae'. Did you mean 'base'? Available: base."),
        ("./conf/bsae.yaml", "conf=./conf/bsae.yaml: no such file. Did you mean 'base.yaml'?"),
        ("./none/at/all.yaml", "conf=./none/at/all.yaml: no such file."),
    ],
)
def test_a_conf_that_is_not_there(ws: Workspace, conf: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        ws.spec(conf=conf)
    assert str(caught.value).startswith(message)


def test_an_error_names_the_file_that_said_it_last(ws: Workspace) -> None:
    ws.write("one", "defaults: [base]\nhidden_size: a")
    ws.write("two", "\nhidden_size: b")
    with pytest.raises(SpecError, match=r"^conf/two.yaml:2: hidden_size: .*\(got 'b'\)$"):
        ws.spec("defaults: [one, two, _self_]")


def test_an_error_below_an_interpolation_names_the_line_of_the_interpolation(ws: Workspace) -> None:
    ws.write("one", "defaults: [base]\nlayers: {blocks: {attn: {table: {theta: 1.0}}}}")
    text = 'defaults: [one]\nlayers:\n  blocks: {attn: {table: "${hf:table}"}}'
    with pytest.raises(SpecError, match=r"^conf/my.yaml:3: layers.blocks.attn.table.theta: "):
        ws.spec(text, {"table": {"theta": "x"}})


def test_yaml_is_read_as_version_1_2(ws: Workspace) -> None:
    spec = ws.spec(
        "defaults: [base]\nhidden_size: 010\nlayers: {kinds: 'on if i else off', "
        "variants: {on: {}, off: {}}}"
    )
    assert spec.hidden_size == 10
    assert spec.layer_kinds == ("off", "on")


def test_nothing_of_hydra_s_own_configuration_is_obeyed(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ws.root / "sentinel_module").mkdir()
    (ws.root / "sentinel_module" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(ws.root))
    with pytest.raises(SpecError, match=r"conf/my.yaml:1: hydra: needs `block:`"):
        ws.spec(f"hydra: {{searchpath: ['pkg://sentinel_module']}}\n{BASE}")
    assert "sentinel_module" not in sys.modules
    assert ws.spec(f"# @package elsewhere\n{BASE}").hidden_size == 8
