"""What is written beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from assembler.errors import CheckpointError
from assembler.export_files import with_both_rope_dialects, write_config, write_gguf_files

SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_both_rope_dialects_mean_the_same_to_transformers(kind: str) -> None:
    config = {"rope_theta": 777.0, "max_position_embeddings": 128}
    if SCALINGS[kind]:
        config["rope_scaling"] = SCALINGS[kind]
    both = with_both_rope_dialects(config)
    expected = {"rope_type": kind, "rope_theta": 777.0, **(SCALINGS[kind] or {})}
    assert both["rope_parameters"] == expected
    new = {key: both[key] for key in ("rope_parameters", "max_position_embeddings")}
    for dialect in (config, both, new):
        assert LlamaConfig(**dialect).rope_parameters == expected
    assert with_both_rope_dialects({"n_embd": 8}) == {"n_embd": 8}  # no rotation, no fields


def test_the_type_is_said_where_it_was_said_before(tmp_path: Path) -> None:
    def written(config: dict) -> dict:
        write_config(config, tmp_path, "float16")
        return json.loads((tmp_path / "config.json").read_text())

    assert written({"a": 1}) == {"a": 1, "dtype": "float16"}
    assert written({"torch_dtype": "x"}) == {"torch_dtype": "float16"}
    nested = {"dtype": "x", "text_config": {"torch_dtype": "x", "b": 2}}
    assert written(nested) == {
        "dtype": "float16",
        "text_config": {"torch_dtype": "float16", "b": 2},
    }
    assert nested["text_config"]["torch_dtype"] == "x"  # the caller's is left alone


def test_a_gguf_map_has_to_say_what_model_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json needs 'architectures'"):
        write_gguf_files({}, {"model_type": "llama"}, tmp_path, "float32")
