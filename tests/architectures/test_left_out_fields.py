"""A field that config.json leaves out is asked for, or means what transformers takes it to mean."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import transformers
from cases import Case, sweep
from huggingface_hub.errors import StrictDataclassError
from tiny_checkpoints import model_class

import assembler
from assembler.errors import SpecError
from assembler.model.conf_files import search_roots
from assembler.model.detect import detect_conf

# Left out, the model has sizes that the tensors contradict, which is found when they are loaded.
SIZES = frozenset(
    {
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
        "word_embed_proj_dim",
    }
)
# Here transformers is not to be followed.
NOT_COMPARED = {
    ("dbrx", "rope_parameters"): "it does not read attn_config.rope_theta",
    ("qwen2", "use_sliding_window"): "it fails on the layer_types that then have no window",
    ("qwen3", "use_sliding_window"): "it fails on the layer_types that then have no window",
}


def one_row_of_each_class() -> list[object]:
    rows, seen = [], set()
    for row in sweep():
        (case,) = row.values
        if case.config_class not in seen and "text_config" not in case.knobs:
            seen.add(case.config_class)
            rows.append(row)
    return rows


@pytest.mark.parametrize("case", one_row_of_each_class())
def test_a_silent_config_means_what_transformers_takes_it_to_mean(case: Case) -> None:
    config_class = getattr(transformers, case.config_class)
    whole = _config_json(config_class(**case.knobs), case)
    compared, differing = [], []
    for name in sorted(whole.keys() - {"architectures", "model_type"} - SIZES):
        if (case.conf, name) in NOT_COMPARED:
            continue
        silent = {key: value for key, value in whole.items() if key != name}
        try:
            filled = config_class.from_dict(copy.deepcopy(silent))
            ours, theirs = _spec_data(silent), _spec_data(_config_json(filled, case))
        except (SpecError, StrictDataclassError, ValueError):
            continue  # asked for by us or by transformers, or without a sensible default
        compared.append(name)
        if ours != theirs:
            differing.append(name)
    assert len(compared) > 5
    assert differing == []


def _config_json(config: transformers.PreTrainedConfig, case: Case) -> dict[str, Any]:
    """All fields, as a published config.json has them."""
    fields = json.loads(config.to_json_string(use_diff=False))
    return {**fields, "architectures": [model_class(case).__name__]}


def _spec_data(config: dict[str, Any]) -> dict[str, Any]:
    conf = detect_conf(config, search_roots())
    spec = assembler.load_spec(conf.name, config)
    return spec.model_dump(exclude={"sources"}, serialize_as_any=True)
