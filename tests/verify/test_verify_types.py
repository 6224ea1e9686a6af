"""Every model type that a conf is for passes on a tiny model of transformers' default config."""

from __future__ import annotations

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from assembler import verify_model
from assembler.model.conf_files import conf_names, find_conf, search_roots

# Types whose default config is no model, and why.
NO_DEFAULT = {
    "cohere_compass": "it has layer types and no RoPE for them",
    "cohere_compass_text": "the same",
    "dbrx": "its attn_config lacks rope_theta",
}


def _types() -> list[str]:
    roots = search_roots()
    found: list[str] = []
    for name in conf_names(roots):
        named = (find_conf(name, roots).marked.data.get("matches") or {}).get("model_type") or []
        found += [named] if isinstance(named, str) else named
    return [kind for kind in found if kind in CONFIG_MAPPING and kind not in NO_DEFAULT]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", _types())
def test_the_default_model_of_a_type(model_type: str) -> None:
    report = verify_model("tiny", model_type=model_type)
    assert report.passed, (report.dense, report.paged, report.difference)
