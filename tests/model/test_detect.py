"""Which conf a checkpoint belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError
from assembler.model.conf_files import PACKAGE_ROOT
from assembler.model.detect import detect_conf


@pytest.fixture
def roots(ws: Workspace, tmp_path: Path) -> list[Path]:
    package, user = tmp_path / "package", tmp_path / "user"
    ws.write("alpha", "matches: {architectures: [AlphaLM, OldAlphaLM], model_type: alpha}", package)
    ws.write("beta", "matches: {architectures: BetaLM, model_type: [beta, beta2]}", package)
    ws.write("gamma", "defaults: [alpha]\nmatches: {config_class: GammaConfig}", package)
    ws.write("child", "defaults: [alpha]", package)
    (user / "conf").mkdir(parents=True)
    return [user, package]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["AlphaLM"]}, "alpha"),
        ({"architectures": ["OldAlphaLM"]}, "alpha"),
        ({"architectures": ["Unknown", "BetaLM"]}, "beta"),
        ({"architectures": ["BetaLM"], "model_type": "alpha"}, "beta"),
        ({"architectures": ["Unknown"], "model_type": "beta2"}, "beta"),
        ({"model_type": "alpha"}, "alpha"),
        ({"auto_map": {"AutoConfig": "configuration_gamma.GammaConfig"}}, "gamma"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "a--b.GammaConfig"}}, "gamma"),
        ({"model_type": "beta", "auto_map": {"AutoConfig": "b.GammaConfig"}}, "beta"),
    ],
)
def test_order_of_detection(roots: list[Path], config: dict[str, Any], name: str) -> None:
    assert detect_conf(config, roots).name == name


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["AlphaLM"], "model_type": "delta"}, "delta"),
        ({"architectures": ["BetaLM"], "model_type": "delta"}, "beta"),  # does not build on it
        ({"architectures": ["AlphaLM"], "model_type": "other"}, "alpha"),
        ({"architectures": ["AlphaLM"], "text_config": {"model_type": "delta"}}, "delta"),
        ({"model_type": "alpha", "text_config": {"model_type": "delta"}}, "delta"),
        ({"model_type": "delta", "text_config": {"model_type": "alpha"}}, "delta"),
        ({"text_config": {"model_type": "delta"}, "model_type": "beta"}, "beta"),
    ],
)
def test_the_model_type_tells_apart_what_shares_a_class(
    ws: Workspace, roots: list[Path], config: dict[str, Any], name: str
) -> None:
    ws.write("delta", "defaults: [alpha]\nmatches: {model_type: delta}", roots[1])
    assert detect_conf(config, roots).name == name


def test_the_user_s_conf_is_not_replaced_by_a_more_special_one(
    ws: Workspace, roots: list[Path]
) -> None:
    ws.write("delta", "defaults: [alpha]\nmatches: {model_type: delta}", roots[1])
    ws.write("mine", "defaults: [alpha]\nmatches: {architectures: AlphaLM}", roots[0])
    config = {"architectures": ["AlphaLM"], "model_type": "delta"}
    assert detect_conf(config, roots).name == "mine"


def test_the_user_s_root_wins(ws: Workspace, roots: list[Path]) -> None:
    ws.write("mine", "matches: {architectures: [AlphaLM]}", roots[0])
    assert detect_conf({"architectures": ["AlphaLM"]}, roots).name == "mine"


def test_a_conf_of_the_same_name_hides_the_shipped_one(ws: Workspace, roots: list[Path]) -> None:
    ws.write("alpha", "matches: {architectures: [Other]}", roots[0])
    assert detect_conf({"architectures": ["Other"]}, roots).path.parent.parent == roots[0]
    with pytest.raises(SpecError, match="no conf matches this checkpoint"):
        detect_conf({"architectures": ["AlphaLM"]}, roots)


def test_two_of_one_root_are_ambiguous(ws: Workspace, roots: list[Path]) -> None:
    ws.write("mine", "matches: {model_type: zeta}", roots[0])
    ws.write("other", "\nmatches: {model_type: zeta}", roots[0])
    with pytest.raises(SpecError) as caught:
        detect_conf({"model_type": "zeta"}, roots)
    assert str(caught.value) == (
        "model_type zeta is matched by user/conf/mine.yaml:1 and user/conf/other.yaml:2: "
        "pass conf=mine or conf=other"
    )


def test_an_unknown_architecture_lists_what_there_is(roots: list[Path]) -> None:
    with pytest.raises(SpecError) as caught:
        detect_conf({"architectures": ["AlphLM"], "model_type": "bet"}, roots)
    assert str(caught.value) == (
        "no conf matches this checkpoint (AlphLM, bet). "
        "Did you mean 'AlphaLM' or 'OldAlphaLM' or 'alpha'? "
        "Did you mean 'beta' or 'beta2' or 'BetaLM'? Available: alpha, beta, gamma. "
        "Pass conf=NAME, or write a conf for it (conf=./my.yaml)"
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": None},
        {"architectures": []},
        {"architectures": [{}], "model_type": ["x"] * 0},
        {"architectures": {"a": 1}, "model_type": 3, "auto_map": "x"},
    ],
)
def test_a_config_that_names_nothing(roots: list[Path], config: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"names no architecture .* say which with conf=NAME"):
        detect_conf(config, roots)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matches: {architecture: [A]}", "matches has no 'architecture'. Did you mean 'archi"),
        ("matches: [A]", "conf/bad.yaml:1: matches must be a mapping"),
        ("matches: {model_type: {a: 1}}", "matches.model_type takes a name or a list of names"),
        ("matches: {model_type: '${hf:a}'}", "matches.model_type takes no interpolation: it is"),
        ("matches: {model_type: [[a]]}", "matches.model_type takes a name or a list of names"),
    ],
)
def test_matches_that_are_wrong(ws: Workspace, roots: list[Path], text: str, message: str) -> None:
    ws.write("bad", text, roots[0])
    with pytest.raises(SpecError) as caught:
        detect_conf({"model_type": "alpha"}, roots)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "llama"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "qwen3"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}, "gemma3"),
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "c.MiniCPMConfig"}}, "minicpm"),
    ],
)
def test_shipped_confs(config: dict[str, Any], name: str) -> None:
    assert detect_conf(config, [PACKAGE_ROOT]).name == name
