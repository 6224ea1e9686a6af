"""The `config:` section of a GGUF weight map: metadata keys translated to config.json fields.

GGUF files describe a model by their own keys (`llama.embedding_length`); model files read the names
of config.json (`hidden_size`). A field is written as one of

- `llama.embedding_length`: the value of a metadata key,
- `{value: x}`: x itself,
- `{present: tensor}` / `{absent: tensor}`: whether the file holds a tensor,
- `{length: key}`: the number of items of an array,
- `{first_of: [...]}`: the first of several fields that is there,
- `{fields: {...}}`: a nested mapping of fields.

A field whose key the file lacks is left out, so that the model file's own default applies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from assembler.errors import WeightMapError, did_you_mean


@dataclass(frozen=True)
class Header:
    """What a field may ask of a GGUF file."""

    metadata: Mapping[str, Any]
    tensors: Collection[str]


FIELD_FORMS = ("value", "present", "absent", "length", "first_of", "fields")

# How one field is found; None when the file does not say.
Field = Callable[[Header], Any]


def parse_config(fields: Any, where: Callable[..., str], *keys: str) -> dict[str, Field]:
    """Check a mapping of fields and make each callable; `where(*keys)` gives file:line."""
    if not isinstance(fields, dict) or not fields:
        raise WeightMapError(f"{where(*keys)}: a mapping of config fields is wanted, not {fields}")
    return {name: _field(form, where, (*keys, name)) for name, form in fields.items()}


def translate_config(fields: Mapping[str, Field], header: Header) -> dict[str, Any]:
    """The config.json-like dict that the fields give for one file."""
    found = {name: field(header) for name, field in fields.items()}
    return {name: value for name, value in found.items() if value is not None}


def _field(form: Any, where: Callable[..., str], keys: tuple[str, ...]) -> Field:
    if isinstance(form, str) and form:
        return lambda header: header.metadata.get(form)
    if not isinstance(form, dict) or len(form) != 1 or next(iter(form)) not in FIELD_FORMS:
        named = next(iter(form)) if isinstance(form, dict) and form else ""
        hint = did_you_mean(named, FIELD_FORMS)
        raise WeightMapError(
            f"{where(*keys)}: {keys[-1]}: write a metadata key or a mapping with one of "
            f"{', '.join(FIELD_FORMS)}, not {form!r}.{hint}"
        )
    [(kind, argument)] = form.items()
    if kind == "value":
        return lambda header: argument
    if kind == "fields":
        nested = parse_config(argument, where, *keys, kind)
        return lambda header: translate_config(nested, header) or None
    if kind == "first_of":
        return _first_of(argument, where, (*keys, kind))
    if not isinstance(argument, str) or not argument:
        raise WeightMapError(f"{where(*keys)}: {keys[-1]}: '{kind}' takes a name, not {argument!r}")
    if kind == "length":
        return lambda header: _length(header.metadata.get(argument))
    return lambda header: (argument in header.tensors) == (kind == "present")


def _first_of(forms: Any, where: Callable[..., str], keys: tuple[str, ...]) -> Field:
    if not isinstance(forms, list) or not forms:
        raise WeightMapError(f"{where(*keys)}: {keys[-2]}: 'first_of' takes a list of fields")
    fields = [_field(form, where, keys) for form in forms]

    def first(header: Header) -> Any:
        values = (field(header) for field in fields)
        return next((value for value in values if value is not None), None)

    return first


def _length(items: Any) -> int | None:
    return None if items is None else len(items)
