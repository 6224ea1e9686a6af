"""The JSON Schema of a weight map, from which editors complete and check as one types."""

from __future__ import annotations

from typing import Any, get_args

from assembler.weights.gguf_config import FIELD_FORMS
from assembler.weights.map_rules import ITEM_KEYS, PER_WORDS, RULE_KEYS
from assembler.weights.ops import RopeOrder
from assembler.weights.weight_map import MAP_KEYS, SPLIT_KINDS

_NAME = {"type": "string", "minLength": 1}
_NAMES = {"type": "array", "items": _NAME, "minItems": 1}

_OPTIONS: dict[str, dict[str, Any]] = {
    "from": {"description": "The tensor or module on disk; a list is merged in order."},
    "parts": {
        **_NAMES,
        "uniqueItems": True,
        "description": "The target's parts that this one source holds, in its own order.",
    },
    "per": {
        "anyOf": [{"enum": list(PER_WORDS)}, {"type": "integer", "minimum": 1}],
        "description": "The parts repeat in blocks: one a head, one a kv head, or so many.",
    },
    "transpose": {"type": "boolean", "description": "The last two dims are swapped on disk."},
    "rope": {
        "enum": list(get_args(RopeOrder)),
        "description": "Reorder the rows of every head between the two rotary layouts.",
    },
    "optional": {"type": "boolean", "description": "The rule may apply nowhere."},
}

_SECTIONS: dict[str, dict[str, Any]] = {
    "extends": {**_NAME, "description": "Another map, which this one is laid over."},
    "prefixes": {
        "type": "array",
        "items": {"type": "string", "pattern": r"^$|\.$"},
        "description": "Accepted before every name of a checkpoint; the one that fits is used.",
    },
    "config": {
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/field"},
        "description": "GGUF only: config.json fields from metadata keys.",
    },
    "weights": {
        "$ref": "#/$defs/scope",
        "description": "Which tensors fill each module or parameter.",
    },
    "tp": {
        "type": "object",
        "properties": {kind: {"anyOf": [_NAME, _NAMES]} for kind in SPLIT_KINDS},
        "additionalProperties": False,
        "description": "How targets are split over ranks; `layers.{i}.` is left out.",
    },
    "ignore": {
        "type": "object",
        "additionalProperties": {"type": ["string", "null"]},
        "description": "Tensor names (* is any text) that are not needed, each with the reason.",
    },
}


def weight_map_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of `weight_maps/*.yaml`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Weight map",
        "type": "object",
        "properties": {key: _SECTIONS[key] for key in MAP_KEYS},
        "additionalProperties": False,
        "$defs": {
            "source": {"anyOf": [_NAME, _rule(ITEM_KEYS, _NAME)]},
            "rule": _rule(RULE_KEYS, {"anyOf": [_NAME, _list_of("source")]}),
            "scope": {
                "type": "object",
                "properties": {
                    **dict.fromkeys(RULE_KEYS, False),  # a rule's options are no targets
                    "from": {**_NAME, "description": "Joined before every source."},
                },
                "additionalProperties": {
                    "anyOf": [
                        _NAME,
                        _list_of("source"),
                        {"$ref": "#/$defs/rule"},
                        {"$ref": "#/$defs/scope"},
                        {"type": "null", "description": "Deletes an inherited rule."},
                    ]
                },
            },
            "field": {"anyOf": [_NAME, *map(_field_form, FIELD_FORMS)]},
        },
    }


def _rule(keys: tuple[str, ...], source: dict[str, Any]) -> dict[str, Any]:
    properties = {key: _OPTIONS[key] for key in keys}
    properties["from"] = {**source, **_OPTIONS["from"]}
    return {
        "type": "object",
        "properties": properties,
        "required": ["from"],
        "additionalProperties": False,
    }


def _list_of(definition: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/$defs/{definition}"}, "minItems": 1}


def _field_form(form: str) -> dict[str, Any]:
    arguments: dict[str, dict[str, Any]] = {
        "value": {},
        "first_of": _list_of("field"),
        "fields": {"type": "object", "additionalProperties": {"$ref": "#/$defs/field"}},
    }
    return {
        "type": "object",
        "properties": {form: arguments.get(form, _NAME)},
        "required": [form],
        "additionalProperties": False,
    }
