"""`${hf_rope:}` for every dialect in which a config.json gives RoPE settings."""

from __future__ import annotations

from typing import Any

import pytest
from toy_confs import Workspace
from transformers import Gemma3TextConfig, LlamaConfig, PhiConfig

from assembler.blocks.rope_settings import RopeSettings
from assembler.errors import SpecError
from assembler.model.config_fields import ConfigFields, Missing
from assembler.model.rope_config import rope_settings

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {"short_factor": [1.0, 1.1], "long_factor": [2.0, 2.2]}
NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def _normal(config: dict[str, Any], *args: Any) -> dict[str, Any] | Missing | None:
    settings = rope_settings(ConfigFields(config), *args)
    if isinstance(settings, dict):
        RopeSettings.model_validate(settings)  # the normal form is what blocks take
    return settings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 5e5}, {"type": "default", "theta": 5e5}),
        ({"rope_theta": 5e5, "rope_scaling": None}, {"type": "default", "theta": 5e5}),
        ({"rotary_emb_base": 1e4, "rotary_pct": 0.25}, {"theta": 1e4, "partial": 0.25}),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, {"partial": 0.5}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"type": "linear", "theta": 1e4, "factor": 2.0},
        ),
        (
            {
                "rope_theta": 1e4,
                "max_position_embeddings": 99,
                "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
            },
            {"type": "dynamic", "factor": 2.0, "max_position_embeddings": 99},
        ),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"type": "llama3", "low_freq_factor": 1.0}),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 7e5}}, {"type": "llama3", "theta": 7e5}),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            {"type": "default", "theta": 1e4, "partial": 0.5},
        ),
        (  # rope_scaling, where it is set, replaces rope_parameters
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 9e9},
            },
            {"type": "linear", "theta": 1e4},
        ),
        (  # "su" and, with factor lists, "yarn" are old names of longrope
            {"rope_theta": 1e4, "max_position_embeddings": 99, "rope_scaling": {"type": "su"}},
            {"type": "longrope", "original_max_position_embeddings": 99},
        ),
        (
            {
                "rope_theta": 1e4,
                "max_position_embeddings": 99,
                "original_max_position_embeddings": 33,
                "rope_scaling": {"type": "yarn", **LONG},
            },
            {
                "type": "longrope",
                "original_max_position_embeddings": 33,
                "max_position_embeddings": 99,
            },
        ),
        (  # the length at the top level wins over that in the dict
            {
                "rope_theta": 1e4,
                "original_max_position_embeddings": 33,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 44,
                },
            },
            {"type": "yarn", "original_max_position_embeddings": 33},
        ),
        (
            {
                "rope_theta": 1e4,
                "max_position_embeddings": 99,
                "rope_scaling": {"type": "yarn", "factor": 2.0},
            },
            {"type": "yarn", "original_max_position_embeddings": 99},
        ),
        ({"text_config": {"rope_theta": 3.0}}, {"theta": 3.0}),
        (  # the axes of images are one for text
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
            },
            {"type": "default", "theta": 1e4},
        ),
        (  # what other types would use does not matter
            {
                "rope_theta": 1e4,
                "rope_scaling": {"type": "dynamic", "alpha": 9.0, "factor": 1.0, "beta_fast": 32},
            },
            {"type": "ntk_alpha", "alpha": 9.0},
        ),
        (
            {
                "rope_theta": 1e4,
                "max_position_embeddings": 99,
                "original_max_position_embeddings": 33,
                "rope_scaling": {"type": "longrope", **LONG, "short_mscale": 1.2, "long_mscale": 2},
            },
            {"type": "longrope", "short_mscale": 1.2, "long_mscale": 2},
        ),
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 7e5, "llama_4_scaling_beta": 0.1}},
            {"type": "llama3", "theta": 7e5},
        ),
    ],
)
def test_dialects(config: dict[str, Any], expected: dict[str, Any]) -> None:
    if config.get("rope_scaling") == {"type": "su"}:
        config["rope_scaling"] |= LONG
    settings = _normal(config)
    assert {key: settings[key] for key in expected} == expected


def test_null_entries_count_as_absent() -> None:
    config = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0, "beta": None}}
    assert _normal(config) == {"type": "linear", "factor": 2.0, "theta": 1e4}


def test_settings_nested_per_layer_type() -> None:
    config = {"rope_parameters": {**NESTED, "no_rope": None}}
    assert _normal(config, "full_attention") == {"type": "linear", "theta": 1e6, "factor": 8.0}
    assert _normal(config, "sliding_attention") == {"type": "default", "theta": 1e4}
    assert _normal(config, "no_rope") is None


def test_nested_settings_need_the_layer_type() -> None:
    with pytest.raises(SpecError) as caught:
        _normal({"rope_parameters": NESTED})
    assert "('full_attention', 'sliding_attention') and none is named" in str(caught.value)
    assert "write ${hf_rope:full_attention}" in str(caught.value)
    with pytest.raises(SpecError, match="'chunked' is not among them"):
        _normal({"rope_parameters": NESTED}, "chunked")


def test_nested_settings_that_agree_need_no_layer_type() -> None:
    same = {"rope_type": "default", "rope_theta": 3.0}
    config = {"rope_parameters": {"a": same, "b": dict(same)}}
    assert _normal(config) == {"type": "default", "theta": 3.0}


def test_a_layer_type_does_not_matter_where_settings_are_not_nested() -> None:
    assert _normal({"rope_theta": 3.0}, "sliding_attention") == _normal({"rope_theta": 3.0})


def test_defaults_fill_what_the_config_leaves_out() -> None:
    defaults = {"theta": 1e4, "partial": 0.25}
    assert _normal({"a": 1}, None, defaults) == {"type": "default", **defaults}
    config = {"rope_theta": 5.0, "rotary_pct": None}
    assert _normal(config, None, defaults) == {"type": "default", "theta": 5.0, "partial": 0.25}


@pytest.mark.parametrize(
    ("config", "style"),
    [
        ({}, "interleaved"),
        ({"rope_interleave": True}, "interleaved"),
        ({"rope_interleave": False}, "half"),
    ],
)
def test_the_style_is_the_confs_unless_the_config_names_one(config: dict, style: str) -> None:
    settings = _normal({"rope_theta": 1e4, **config}, None, {"style": "interleaved"})
    assert settings["style"] == style
    silent = _normal({"rope_theta": 1e4})
    assert RopeSettings.model_validate(silent).style == "half"


def test_a_theta_that_nothing_gives_is_missing() -> None:
    missing = _normal({"a": 1})
    assert isinstance(missing, Missing)
    assert "rope_theta" in missing.field


def test_a_layer_type_with_a_theta_of_its_own() -> None:
    flat = {
        "rope_theta": 1e6,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    own = ("sliding_attention", {"theta": 1e4}, "rope_local_base_freq")
    assert _normal(flat, *own) == {"type": "default", "theta": 2e4}
    assert _normal(flat, "full_attention")["theta"] == 1e6
    assert _normal({"rope_theta": 1e6}, *own) == {"type": "default", "theta": 1e4}
    assert _normal({"rope_parameters": NESTED}, *own) == {"type": "default", "theta": 1e4}


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_settings_that_are_no_mapping(name: str) -> None:
    with pytest.raises(SpecError, match=f"'{name}' in config.json must be a mapping, not 'linear'"):
        _normal({"rope_theta": 1.0, name: "linear"})


def test_configs_as_transformers_writes_them() -> None:
    llama = LlamaConfig(rope_parameters={**LLAMA3, "rope_theta": 5e5}).to_dict()
    settings = _normal(llama)
    assert (settings["type"], settings["theta"], settings["factor"]) == ("llama3", 5e5, 8.0)
    phi = _normal(PhiConfig().to_dict())
    assert (phi["theta"], phi["partial"]) == (1e4, 0.5)
    gemma = Gemma3TextConfig().to_dict()
    assert _normal(gemma, "full_attention")["theta"] == 1e6
    assert _normal(gemma, "sliding_attention")["theta"] == 1e4


@pytest.mark.parametrize(
    ("text", "theta"),
    [
        ("${hf_rope:}", 5.0),
        ("${hf_rope:null,{theta: 9.0}}", 5.0),
        ("${hf_rope:sliding,{theta: 9.0},local}", 7.0),
        ("${hf_rope:sliding,{theta: 9.0},absent}", 9.0),
        ("${hf_rope:sliding,null,local}", 7.0),
    ],
)
def test_how_it_is_written_in_a_conf(ws: Workspace, text: str, theta: float) -> None:
    config = {"rope_theta": 5.0, "local": 7.0}
    spec = ws.base(("heads: 2", f'heads: 2, table: "{text}"'), config=config)
    assert spec.kinds["layer"].blocks["attn"].table.theta == theta


@pytest.mark.parametrize("text", ["${hf_rope:a,b}", "${hf_rope:a,{},b,c}"])
def test_wrong_arguments(ws: Workspace, text: str) -> None:
    with pytest.raises(SpecError, match="takes a layer type, a mapping of defaults and the field"):
        ws.base(("heads: 2", f'heads: 2, table: "{text}"'), config={"rope_theta": 5.0})
