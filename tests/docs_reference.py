"""The generated tables of docs/model-language.md.

    python tests/docs_reference.py

puts them between their markers; a test compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from assembler.blocks.rope_settings import RopeSettings
from assembler.model import expressions
from assembler.model.json_schema import model_schema
from assembler.model.registry import BlockRegistry, BlockSpec, default_registry, summary

PAGE = Path(__file__).resolve().parent.parent / "docs" / "model-language.md"
Schema = Mapping[str, Any]


def sections() -> dict[str, str]:
    """The generated text of each pair of markers, by name."""
    registry = default_registry()
    schema = model_schema(registry)
    layers = schema["properties"]["layers"]
    variant = layers["properties"]["variants"]["additionalProperties"]["anyOf"][0]
    required = {"weight_map", "hidden_size", "vocab_size", "layers", "wiring", "count", "blocks"}
    return {
        "model": _table(schema["properties"], required),
        "layers": _table(layers["properties"], required),
        "variant": _table(variant["properties"], ()),
        "matches": _table(schema["properties"]["matches"]["properties"], ()),
        "functions": f"{', '.join(f'`{name}`' for name in expressions.FUNCTIONS)}.",
        "blocks": _blocks(registry, schema["$defs"]),
    }


def _blocks(registry: BlockRegistry, definitions: Schema) -> str:
    parts = []
    for name in registry:
        model = registry[name]
        says = model.model_fields["block"].description
        role = registry.block_class(name).role
        fields = {k: v for k, v in definitions[name]["properties"].items() if k != "block"}
        required = [k for k, info in model.model_fields.items() if info.is_required()]
        parts += [f"### {name}", f"{says} Role: {role}.", _table(fields, required)]
    for settings in _settings(registry):
        fields = definitions[settings.__name__]["properties"]
        required = [k for k, info in settings.model_fields.items() if info.is_required()]
        title, says = settings.__name__, f"A mapping, no block. {summary(settings)}"
        if settings is RopeSettings:
            title, says = "RoPE settings", "What `rope:` holds and `${hf_rope:}` gives."
        parts += [f"### {title}", says, _table(fields, required)]
    return "\n\n".join(part for part in parts if part)


def _settings(registry: BlockRegistry) -> list[type[BaseModel]]:
    """The models of fields that hold a mapping of settings and no block, RoPE's first."""
    annotations = [i.annotation for model in registry.values() for i in model.model_fields.values()]
    candidates = [kind for a in annotations for kind in (a, *get_args(a))]
    found = dict.fromkeys(
        c
        for c in candidates
        if isinstance(c, type) and issubclass(c, BaseModel) and not issubclass(c, BlockSpec)
    )
    return sorted(found, key=lambda settings: settings is not RopeSettings)


def _table(fields: Schema, required: Iterable[str]) -> str:
    if not fields:
        return ""
    rows = ["| key | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for name, schema in fields.items():
        default = "required" if name in required else _yaml(schema.get("default"))
        meaning = schema.get("description", "")
        rows.append(f"| `{name}` | {_takes(schema)} | {default} | {meaning} |")
    return "\n".join(row.replace(" |  |", " | |") for row in rows)


def _yaml(value: Any) -> str:
    text = {None: "", True: "true", False: "false"}.get(value) if _is_plain(value) else None
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if text is None else text


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _takes(schema: Schema) -> str:
    """What a field takes, in words.

    That an interpolation, or a value for each layer, may stand for it goes without saying.
    """
    alternatives = schema.get("anyOf", [schema])
    everywhere = [f"#/$defs/{name}" for name in ("interpolation", "per_layer")]
    words = [_word(one) for one in alternatives if one.get("$ref") not in everywhere]
    return " or ".join(dict.fromkeys(word for word in words if word))


def _word(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        article = "an" if name[0] in "aeiou" else "a"
        words = f"{article} {name.replace('_', ' ')}"
        return words if name.endswith("_block") else f"a mapping ({name})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = {
        "string": "text",
        "array": "a list",
        "object": "a mapping",
        "integer": "integer",
        "number": "number",
        "boolean": "true, false",
        "null": "null",
    }
    words = " or ".join(names[kind] for kind in kinds)
    limits = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {schema[key]}" for key, sign in limits.items() if key in schema]
    return f"{words} {', '.join(bounds)}".strip()


def with_sections(text: str) -> str:
    """The page's text with every generated section as it should be."""
    for name, content in sections().items():
        begin, end = (f"<!-- {word} generated: {name} -->" for word in ("begin", "end"))
        assert text.count(begin) == text.count(end) == 1, f"no markers for '{name}'"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        new = f"{begin}\n{content}\n{end}"
        text = re.sub(pattern, lambda _, new=new: new, text, flags=re.S)
    return text


if __name__ == "__main__":
    PAGE.write_text(with_sections(PAGE.read_text("utf-8")), "utf-8")
