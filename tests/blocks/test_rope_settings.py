"""Settings: each type has what it needs, and what it does not use is refused, not ignored."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from assembler.blocks.rope_settings import RopeSettings

LONGROPE = {"short_factor": [1.0, 2.0], "long_factor": [2.0, 4.0]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "linear"}, "'linear' needs factor"),
        ({"type": "dynamic", "factor": 2.0}, "'dynamic' needs max_position_embeddings"),
        (
            {"type": "llama3", "factor": 8.0},
            "needs high_freq_factor, low_freq_factor, original_max_position_embeddings",
        ),
        ({"type": "yarn", "factor": 4.0}, "'yarn' needs original_max_position_embeddings"),
        (
            {"type": "yarn", "original_max_position_embeddings": 8},
            "'yarn' needs factor or max_position_embeddings",
        ),
        (
            {"type": "longrope", **LONGROPE, "original_max_position_embeddings": 8},
            "'longrope' needs factor or max_position_embeddings",
        ),
        ({"factor": 2.0}, "'default' does not use factor; it uses only theta, partial and style"),
        ({"type": "linear", "factor": 2.0, "mscale": 1.0}, "does not use mscale; it uses factor"),
        ({"type": "ntk_alpha"}, "'ntk_alpha' needs alpha"),
        (
            {
                "type": "longrope",
                **LONGROPE,
                "original_max_position_embeddings": 8,
                "short_mscale": 1.2,
            },
            "short_mscale and long_mscale need each other",
        ),
        ({"type": "ntk"}, "Input should be 'default', 'linear'"),
        ({"base": 10000.0}, "Extra inputs are not permitted"),
        ({"theta": 0.0}, "greater than 1"),
        ({"partial": 1.5}, "less than or equal to 1"),
        (
            {
                "type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
            "high_freq_factor must not be less than low",
        ),
        (
            {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "beta_fast": 0.5,
            },
            "beta_fast must not be less than beta_slow",
        ),
        (
            {
                "type": "longrope",
                "short_factor": [1.0],
                "long_factor": [2.0, 4.0],
                "original_max_position_embeddings": 8,
                "factor": 2.0,
            },
            "short_factor has 1 numbers, long_factor 2",
        ),
    ],
)
def test_wrong_settings_say_what_is_wrong(fields, message):
    with pytest.raises(ValidationError, match=message):
        RopeSettings(**fields)


def test_one_error_lists_what_is_missing_and_what_is_unused():
    with pytest.raises(ValidationError, match=r"needs factor; .*does not use beta_fast, mscale"):
        RopeSettings(type="linear", mscale=1.0, beta_fast=32.0)


def test_null_counts_as_not_given():
    assert RopeSettings(factor=None, mscale=None) == RopeSettings()


def test_lists_from_yaml_become_hashable_settings():
    fields = {**LONGROPE, "original_max_position_embeddings": 8, "max_position_embeddings": 32}
    settings = RopeSettings(type="longrope", **fields)
    assert hash(settings) == hash(RopeSettings(type="longrope", **fields))
    assert settings.long_factor == (2.0, 4.0)
    assert settings.stretch == 4.0


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        RopeSettings().theta = 1.0


def test_every_field_is_described():
    properties = RopeSettings.model_json_schema()["properties"]
    assert all(entry.get("description") for entry in properties.values())
