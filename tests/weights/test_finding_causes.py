"""Findings that name what is behind them: an override, a null in the map, a misspelt rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_llama import save_llama
from weights_harness import MAP, decoder, save, tensors, write_map

from assembler.errors import WeightMapError
from assembler.loading import assemble
from assembler.weights.finding import Finding
from assembler.weights.plan import plan_load
from assembler.weights.taken_back import blame_taken_back
from assembler.weights.weight_map import load_weight_map

MODULES = [name for name, _ in decoder().named_modules()]


def test_more_layers_than_the_checkpoint_has(tmp_path: Path):
    save_llama(tmp_path / "tiny", tokenizer=False)
    plan = assemble(tmp_path / "tiny", overrides=["conf.layers.count=9"]).plan
    assert len(plan.errors) > 3
    for finding in plan.errors:
        assert "layers.{3-8}." in finding.subject
        assert (
            finding.hint == "conf.layers.count=9 asks for more layers than the 3 of the checkpoint."
        )


def test_a_tensor_that_is_missing_otherwise_is_not_blamed_on_the_override(tmp_path: Path):
    save_llama(tmp_path / "tiny", tokenizer=False)
    plan = assemble(tmp_path / "tiny", overrides=["conf.layers.count=2"]).plan
    assert not plan.errors
    bare = assemble(tmp_path / "tiny").plan
    assert not bare.errors and not any("asks for more" in f.hint for f in bare.findings)


def findings(tmp_path: Path, text: str) -> dict[str, Finding]:
    write_map(tmp_path, MAP, "base")
    weight_map = write_map(tmp_path, f"extends: base\nweights:\n{text}", "mine")
    plan = plan_load(weight_map, decoder(), save(tmp_path, tensors()))
    found = blame_taken_back(plan.findings, weight_map)
    return {f.subject: f for f in found if f.kind == "missing"}


def test_an_empty_scope_takes_back_all_that_is_below(tmp_path: Path):
    found = findings(tmp_path, "  layers.{i}:\n")
    assert len(found) == 5
    for finding in found.values():
        assert re.fullmatch(
            r"Nothing stands after 'layers\.\{i\}:' at .*mine\.yaml:3, which takes back every "
            r"inherited rule there: fill it or delete the line\.",
            finding.hint,
        ), finding.hint


def test_a_null_that_takes_one_rule_back(tmp_path: Path):
    found = findings(tmp_path, "  layers.{i}:\n    attn.o: null\n  norm: ~ # not needed\n")
    assert set(found) == {"layers.{0-2}.attn.o.weight", "norm.weight"}
    hint = found["layers.{0-2}.attn.o.weight"].hint
    assert re.fullmatch(r"null takes back 'layers\.\{i\}\.attn\.o' at .*mine\.yaml:4\.", hint)
    assert found["norm.weight"].hint.endswith("mine.yaml:5.")


def test_a_rule_that_was_never_there_is_not_blamed_on_a_null(tmp_path: Path):
    text = MAP.replace("  norm: model.norm\n", "")
    write_map(tmp_path, text, "base")
    weight_map = write_map(tmp_path, "extends: base\nweights: {lm_head: null}\n", "mine")
    plan = plan_load(weight_map, decoder(), save(tmp_path, tensors()))
    assert next(blame_taken_back(plan.findings, weight_map)) == plan.findings[0]


@pytest.mark.parametrize(
    ("text", "modules", "message"),
    [
        (  # the rule was misspelt
            MAP.replace("    attn.qkv:", "    attn.qvk:"),
            MODULES,
            r"tp names 'attn\.qkv', which no rule fills\. The model has it, and no "
            r"'layers\.\{i\}\.attn\.qvk', which .*tiny\.yaml:7 fills\.$",
        ),
        (  # the entry was misspelt
            MAP.replace("[attn.qkv,", "[attn.qvk,"),
            MODULES,
            r"tp names 'attn\.qvk', which no rule fills\. Did you mean 'attn\.qkv'\?$",
        ),
        (  # nobody knows which
            MAP.replace("    attn.qkv:", "    attn.qvk:"),
            (),
            r"One of the two is misspelt: it, or the rule 'layers\.\{i\}\.attn\.qvk' at .*:7\.$",
        ),
        (  # the rule is gone
            re.sub(r"    attn\.qkv: .*\n", "", MAP),
            MODULES,
            r"tp names 'attn\.qkv', which no rule fills\. The model has it: write its rule\.$",
        ),
    ],
)
def test_a_tp_entry_without_a_rule(tmp_path: Path, text: str, modules, message: str):
    (tmp_path / "weight_maps").mkdir()
    (tmp_path / "weight_maps" / "tiny.yaml").write_text(text)
    with pytest.raises(WeightMapError, match=message):
        load_weight_map("tiny", [tmp_path], modules)


def test_a_rule_that_names_a_whole_tensor_for_a_module(tmp_path: Path):
    weight_map = write_map(tmp_path, MAP.replace("norm: model.norm\n", "norm: model.norm.weight\n"))
    plan = plan_load(weight_map, decoder(), save(tmp_path, tensors()))
    [finding] = [f for f in plan.findings if f.kind == "unclaimed"]
    assert finding.subject == "model.norm.weight"
    assert finding.message == (
        "its rule names this one tensor for the module norm (it has weight): leave the last part "
        "of the name out on the right, or name a parameter on the left"
    )


def test_a_tensor_named_as_the_module(tmp_path: Path):
    weights = tensors()
    weights["model.norm"] = weights.pop("model.norm.weight")
    plan = plan_load(write_map(tmp_path, MAP), decoder(), save(tmp_path, weights))
    [finding] = [f for f in plan.findings if f.kind == "missing"]
    assert finding.hint == (
        " Did you mean 'model.norm'? A tensor without '.weight' needs a rule with '.weight' in its "
        "target."
    )
    weight_map = write_map(tmp_path, MAP.replace("norm: model.norm\n", "norm.weight: model.norm\n"))
    assert not plan_load(weight_map, decoder(), save(tmp_path, weights)).errors
