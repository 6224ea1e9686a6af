"""The JSON Schema of a model YAML, from which editors complete and check as one types.

It is derived from the pydantic documents and from the registry, so it says what the language says.
Three rules make a schema of a whole model into one of a file: nothing is required, because a conf
may inherit it; an interpolation may stand for any value; and an entry that names no `block:` may
change the fields of whichever block it inherits. In blocks a value may be given for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from assembler.model.per_layer import PER_LAYER
from assembler.model.registry import BlockRegistry
from assembler.model.spec import LayersDocument, MatchesDocument, ModelDocument, VariantDocument

Schema = dict[str, Any]

_INTERPOLATION = {"$ref": "#/$defs/interpolation"}
_PER_LAYER = {"$ref": f"#/$defs/{PER_LAYER}"}
_NULL = {"type": "null"}
_NAME = "^[A-Za-z_][A-Za-z0-9_]*$"
_KINDS_OF_AXIS = {
    "type": ["string", "array", "null"],
    "items": {"type": ["string", "integer", "boolean"]},
}
_KINDS = {
    "type": [*_KINDS_OF_AXIS["type"], "object"],
    "items": _KINDS_OF_AXIS["items"],
    "additionalProperties": _KINDS_OF_AXIS,
}
_DEFAULTS = {
    "type": "array",
    "items": {"type": "string"},
    "description": "the confs to inherit from, and _self_ for this file; later ones win",
}


def model_schema(registry: BlockRegistry) -> Schema:
    """The schema (draft 2020-12) of `conf/*.yaml` with the blocks of `registry`."""
    definitions: Schema = {
        "interpolation": {
            "type": "string",
            "pattern": r"\$\{",
            "description": "${hf:field,default}, ${hf_rope:}, ${calc:'...'} or ${conf.key}",
        },
        PER_LAYER: {
            "type": "object",
            "description": "a value for each layer: a list, or an expression in the index i",
            "properties": {PER_LAYER: {"type": ["array", "string"]}},
            "required": [PER_LAYER],
            "additionalProperties": False,
        },
    }
    writer = _Writer(registry, definitions)
    blocks = {
        "type": "object",
        "propertyNames": {"pattern": _NAME},
        "additionalProperties": writer.entry(registry.names(), "block"),
    }
    variant = writer.document(VariantDocument, blocks=blocks)
    variants = {"type": "object", "additionalProperties": {"anyOf": [variant, _NULL]}}
    model = writer.document(
        ModelDocument,
        matches=writer.document(MatchesDocument),
        layers=writer.document(LayersDocument, blocks=blocks, variants=variants, kinds=_KINDS),
        kinds=_KINDS,
        variants=variants,
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Model",
        "description": "A language model; a key that is not listed here is a block by that name",
        **blocks,
        "properties": {"defaults": _DEFAULTS, **model["properties"]},
        "$defs": definitions,
    }


class _Writer:
    """Turns the JSON Schemas that pydantic makes into those of a file, collecting definitions."""

    def __init__(self, registry: BlockRegistry, definitions: Schema) -> None:
        self.registry = registry
        self.definitions = definitions

    def document(self, model: type[BaseModel], **fields: Schema) -> Schema:
        """A mapping with the fields of `model`, none of them required.

        `fields` are the schemas of those whose types say less than the language does.
        """
        schema = model.model_json_schema()
        properties = {
            name: {"description": field.get("description", ""), **fields[name]}
            if name in fields
            else self._field(field, schema.get("$defs", {}))
            for name, field in schema["properties"].items()
        }
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def entry(self, names: list[str], definition: str) -> Schema:
        """A reference to the schema of a block entry that names one of `names`, or none."""
        reference = {"$ref": f"#/$defs/{definition}"}
        if definition in self.definitions:
            return reference
        self.definitions[definition] = {}  # blocks may nest: the name is taken while it is made
        for name in names:
            if name not in self.definitions:
                self.definitions[name] = {}
                self.definitions[name] = self._block(name)
        meanings = "\n".join(
            f"- {n}: {self.definitions[n]['properties']['block']['description']}" for n in names
        )
        self.definitions[definition] = {
            "type": ["object", "null"],
            "description": "a block and its fields; null drops an inherited one",
            "properties": {
                "block": {
                    "anyOf": [{"enum": names}, _INTERPOLATION],
                    "description": f"which block:\n{meanings}",
                }
            },
            **self._choice(names),
        }
        return reference

    def _choice(self, names: list[str]) -> Schema:
        """The fields by the `block:` named; those of all of them where none is."""
        fields: dict[str, list[Schema]] = {"block": [{}]}
        for name in names:
            for field, schema in self.definitions[name]["properties"].items():
                if field != "block" and schema not in fields.setdefault(field, []):
                    fields[field].append(schema)
        any_block = {
            "properties": {
                field: schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
                for field, schemas in fields.items()
            },
            "additionalProperties": False,
        }
        named = {
            "type": "object",
            "properties": {"block": {"enum": names}},
            "required": ["block"],
        }
        return {
            "if": named,
            "then": {"allOf": [_if_named(name) for name in names]},
            "else": any_block,
        }

    def _block(self, name: str) -> Schema:
        schema = self.document(self.registry[name])
        schema["properties"] = {k: _or_per_layer(v) for k, v in schema["properties"].items()}
        summary = self.registry[name].model_fields["block"].description
        schema["properties"]["block"] = {"const": name, "description": summary}
        return schema

    def _field(self, field: Mapping[str, Any], inner: Mapping[str, Schema]) -> Schema:
        """One field: its alternatives, and an interpolation instead of any of them."""
        alternatives = field.get("anyOf") or field.get("oneOf") or [field]
        converted: list[Schema] = []
        for alternative in alternatives:
            schema = self._alternative(alternative, inner)
            if schema not in converted:
                converted.append(schema)
        kept = {k: field[k] for k in ("description", "default") if field.get(k) is not None}
        if {"type": "string"} not in converted:
            converted.append(_INTERPOLATION)
        return {**kept, **(converted[0] if len(converted) == 1 else {"anyOf": converted})}

    def _alternative(self, schema: Mapping[str, Any], inner: Mapping[str, Schema]) -> Schema:
        if "$ref" in schema:
            return self._reference(schema["$ref"].rpartition("/")[2], inner)
        if "oneOf" in schema:  # nested blocks, told apart by their `block`
            return self._reference(schema["oneOf"][0]["$ref"].rpartition("/")[2], inner)
        drop = ("title", "description", "default", "prefixItems")
        kept = {key: value for key, value in schema.items() if key not in drop}
        if isinstance(kept.get("items"), Mapping):
            kept["items"] = self._field(kept["items"], inner)
        return kept

    def _reference(self, name: str, inner: Mapping[str, Schema]) -> Schema:
        """A nested block (any of its role) or settings that are a mapping of their own."""
        if name in self.registry:
            role = self.registry.block_class(name).role
            return self.entry(self.registry.accepted(role), f"{role}_block")
        if name not in self.definitions:
            self.definitions[name] = {}
            properties = {
                field: _or_per_layer(self._field(schema, inner))
                for field, schema in inner[name]["properties"].items()
            }
            self.definitions[name] = {
                "type": "object",
                "properties": properties,
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{name}"}


def _or_per_layer(field: Schema) -> Schema:
    """A field of a block: its value, or one for each layer."""
    said = {key: value for key, value in field.items() if key in ("description", "default")}
    takes = {key: value for key, value in field.items() if key not in said}
    return {**said, "anyOf": [*takes.get("anyOf", [takes]), _PER_LAYER]}


def _if_named(name: str) -> Schema:
    condition = {"properties": {"block": {"const": name}}}
    return {"if": condition, "then": {"$ref": f"#/$defs/{name}"}}
