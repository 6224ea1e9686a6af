"""The JSON Schema of a weight map, from which editors complete and check as one types."""

from __future__ import annotations

from typing import Any, get_args

from assembler.weights.cache_scales import cache_scale_schema
from assembler.weights.gguf_config import FIELD_FORMS
from assembler.weights.map_options import PER_WORDS, ROPE_ENDS, ParameterType
from assembler.weights.map_rules import ITEM_KEYS, RULE_KEYS, SETTINGS
from assembler.weights.ops import RopeOrder
from assembler.weights.quantization import FORMATS
from assembler.weights.weight_map import MAP_KEYS, SPLIT_KINDS


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


_NAME = {"type": "string", "minLength": 1}
_NAMES = {"type": "array", "items": _NAME, "minItems": 1}

_COUNT = {"type": "integer", "minimum": 1}
_PART_NAMES = {**_NAMES, "uniqueItems": True}

_ROPE_SETTINGS: dict[str, dict[str, Any]] = {
    "order": {
        "enum": list(get_args(RopeOrder)),
        "description": "From the layout on disk to the model's.",
    },
    "parts": {**_PART_NAMES, "description": "Which of `parts` it concerns; default: all."},
    "heads": {**_COUNT, "description": "Heads in the tensor; default: as the model says."},
    "dims": {**_COUNT, "description": "Rows of a head that rotate (partial rotary embeddings)."},
    "partial": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "description": "The share of a head that rotates, instead of `dims`.",
    },
    "at": {"enum": list(ROPE_ENDS), "description": "Where in a head the rotating rows stand."},
}

_SCHEME = {
    "anyOf": [
        {"enum": list(FORMATS)},
        _object(
            {
                "format": {"enum": list(FORMATS)},
                "values": {"type": "string", "description": "The end of the values' name."},
                "scales": {
                    "anyOf": [_NAME, _NAMES],
                    "description": "The end of the scales' name; of a list, the first there.",
                },
                "block": {
                    "type": "array",
                    "items": _COUNT,
                    "minItems": 2,
                    "maxItems": 2,
                    "description": "Rows and columns that share a scale.",
                },
            },
            ["format"],
        ),
    ]
}

_OPTIONS: dict[str, dict[str, Any]] = {
    "from": {"description": "The tensor or module on disk; a list is merged in order."},
    "parts": {
        **_PART_NAMES,
        "description": "The target's parts that this one source holds, in its own order.",
    },
    "per": {
        "anyOf": [{"enum": list(PER_WORDS)}, _COUNT],
        "description": "The parts repeat in blocks: one a head, a kv head, a row, or so many.",
    },
    "transpose": {"type": "boolean", "description": "The last two dims are swapped on disk."},
    "rearrange": {
        "anyOf": [
            _NAME,
            _object({"pattern": _NAME, "sizes": {"type": "object"}}, ["pattern"]),
        ],
        "description": "Reshape and permute, as in einops: disk -> model, '(e i) h -> e h i'.",
    },
    "dequantize": {**_SCHEME, "description": "The weight is two tensors: values and scales."},
    "unstack": {**_NAME, "description": "The wildcard of the target that picks one of a stack."},
    "split": {**_PART_NAMES, "description": "The targets that share the tensor's rows, in order."},
    "slice": {
        "type": "integer",
        "minimum": 0,
        "description": "The tensor may hold more rows; those from this one on are taken.",
    },
    "pad": {
        "type": "number",
        "description": "The tensor may hold fewer rows; the others get this value.",
    },
    "rope": {
        "anyOf": [_ROPE_SETTINGS["order"], _object(_ROPE_SETTINGS, ["order"])],
        "description": "Reorder the rows of every head between the two rotary layouts.",
    },
    "affine": {
        **_object({"scale": {"type": "number"}, "offset": {"type": "number"}}, []),
        "minProperties": 1,
        "description": "The parameter is scale * tensor + offset.",
    },
    "negative_exp": {"type": "boolean", "description": "The parameter is -exp(tensor)."},
    "any": {"description": "Ways to fill the target; the first that the checkpoint has counts."},
    "fill": {"type": "number", "description": "Every value of a parameter without a tensor."},
    "dtype": {
        "enum": list(get_args(ParameterType)),
        "description": "Kept whatever type the model is loaded in.",
    },
    "optional": {"type": "boolean", "description": "The rule may apply nowhere."},
}

_SECTIONS: dict[str, dict[str, Any]] = {
    "extends": {**_NAME, "description": "Another map, which this one is laid over."},
    "prefixes": {
        "type": "array",
        "items": {
            "anyOf": [
                {"type": "string", "pattern": r"^$|\.$"},
                {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
            ]
        },
        "description": "Texts before every name, or roots to replace; the one that fits is used.",
    },
    "quantization": {
        "type": "object",
        "additionalProperties": _SCHEME,
        "description": "Formats of quantised releases, by quant_method of config.json.",
    },
    "cache_scales": cache_scale_schema(_NAME, _NAMES),
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
        "additionalProperties": {
            "anyOf": [
                {"type": ["string", "null"]},
                _object({"reason": _NAME, "optional": {"type": "boolean"}}, ["reason"]),
            ]
        },
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
            "item": {
                "anyOf": [
                    {"$ref": "#/$defs/source"},
                    _object(
                        {"any": {**_OPTIONS["any"], **_list_of("source"), "minItems": 2}}, ["any"]
                    ),
                ]
            },
            "way": {
                "anyOf": [
                    _NAME,
                    _list_of("item"),
                    _rule(ITEM_KEYS, {"anyOf": [_NAME, _list_of("item")]}),
                    _object({"fill": _OPTIONS["fill"]}, ["fill"]),
                ]
            },
            "rule": {
                "anyOf": [
                    _rule((*ITEM_KEYS, *SETTINGS), {"anyOf": [_NAME, _list_of("item")]}),
                    _setting("fill", _OPTIONS["fill"]),
                    _setting("any", {**_OPTIONS["any"], **_list_of("way"), "minItems": 2}),
                ]
            },
            "scope": {
                "type": "object",
                "properties": {
                    **dict.fromkeys(RULE_KEYS, False),  # a rule's options are no targets
                    "from": {**_NAME, "description": "Joined before every source."},
                },
                "additionalProperties": {
                    "anyOf": [
                        _NAME,
                        _list_of("item"),
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
    return _object(properties, ["from"])


def _setting(key: str, value: dict[str, Any]) -> dict[str, Any]:
    settings = {name: _OPTIONS[name] for name in SETTINGS}
    return _object({key: value, **settings}, [key])


def _list_of(definition: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/$defs/{definition}"}, "minItems": 1}


def _field_form(form: str) -> dict[str, Any]:
    arguments: dict[str, dict[str, Any]] = {
        "value": {},
        "first_of": _list_of("field"),
        "fields": {"type": "object", "additionalProperties": {"$ref": "#/$defs/field"}},
    }
    return _object({form: arguments.get(form, _NAME)}, [form])
