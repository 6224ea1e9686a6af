"""The JSON Schemas before a validator of another make: jsonschema-rs, on what PyYAML reads.

`tests/test_schema.py` asks jsonschema, with this package's own reader of YAML.
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {"model": "conf/*.yaml", "weight_map": "weight_maps/**/*.yaml"}


def validator(kind: str) -> jsonschema_rs.Draft202012Validator:
    """A validator of the schema that is written."""
    schema = json.loads((ROOT / "docs" / "schema" / f"{kind}.schema.json").read_text("utf-8"))
    jsonschema_rs.meta.validate(schema)
    return jsonschema_rs.Draft202012Validator(schema)


@pytest.mark.parametrize("kind", SHIPPED)
def test_every_shipped_file_is_valid(kind: str):
    checker = validator(kind)
    files = sorted(ROOT.glob(SHIPPED[kind]))
    assert len(files) > 60
    found = {}
    for file in files:
        errors = [str(e) for e in checker.iter_errors(yaml.safe_load(file.read_text("utf-8")))]
        if errors:
            found[str(file.relative_to(ROOT))] = errors
    assert found == {}


@pytest.mark.parametrize(
    ("kind", "text", "place"),
    [
        ("model", "layers: {blocks: {attn: {block: RopeAttn, num_heds: 4}}}", "attn"),
        ("model", "norm: {block: RMSNrm}", "norm"),
        ("model", "layers: {count: two}", "count"),
        ("weight_map", "tp: {colum: [attn.qkv]}", "tp"),
        ("weight_map", "weights: {norm: {from: a, transpoze: true}}", "norm"),
    ],
)
def test_a_mistake_is_found_in_its_place(kind: str, text: str, place: str):
    errors = list(validator(kind).iter_errors(yaml.safe_load(text)))
    assert any(place in error.instance_path for error in errors), errors
