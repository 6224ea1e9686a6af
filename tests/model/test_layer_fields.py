"""Mistakes in `layers:` that something else could hide."""

from __future__ import annotations

import pytest

from assembler import load_spec
from assembler.errors import SpecError

CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 9,
    "hidden_act": "silu",
    "max_position_embeddings": 8,
}


def test_a_misspelt_field_is_named_beside_the_config_fields_it_leaves_missing():
    with pytest.raises(SpecError) as caught:
        load_spec("llama", CONFIG, ["++conf.layers.bloks={a: 1}"])
    message = str(caught.value)
    assert "unknown field 'bloks' of Layers. Did you mean 'blocks'?" in message
    assert "needs 'rms_norm_eps', which config.json does not have" in message


def test_yes_is_a_text_and_no_boolean():
    config = {**CONFIG, "rms_norm_eps": 1e-5}
    with pytest.raises(SpecError, match=r"qkv_bias: input should be a valid boolean \(got 'yes'\)"):
        load_spec("llama", config, ["conf.layers.blocks.attn.qkv_bias=yes"])
