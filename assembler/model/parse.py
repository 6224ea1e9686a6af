"""Resolved YAML data -> `ModelSpec`, with every finding in one error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from assembler.errors import did_you_mean
from assembler.model.assumptions import broken_assumptions
from assembler.model.config_fields import ConfigFields, missing_fields
from assembler.model.field_errors import (
    KeyPath,
    Where,
    field_errors,
)
from assembler.model.kinds import (
    model_kind,
    used_kinds,
    with_named_kinds,
    without_unused,
)
from assembler.model.names import block_name_problem, stream_name_problem
from assembler.model.registry import BlockRegistry
from assembler.model.spec import (
    LayersDocument,
    ModelDocument,
    ModelSpec,
    VariantDocument,
)
from assembler.model.variants import BlockParser, combined, layer_kinds


def parse_spec(
    name: str, data: Mapping[str, Any], registry: BlockRegistry, where: Where, fields: ConfigFields
) -> ModelSpec:
    """Validate the resolved contents of a conf.

    Args:
        name: the conf's name.
        data: its contents, interpolations resolved (absent config fields as `Missing`).
        registry: the blocks it may name.
        where: "file:line" of a key path.
        fields: the checkpoint's config, for hints.

    Raises:
        SpecError: one line for each thing that is wrong.
    """
    parser = BlockParser(registry, where)
    data = with_named_kinds({key: value for key, value in data.items() if key != "defaults"})
    entries = _block_entries(data, parser)
    layers = data.get("layers")
    used = used_kinds(layers, parser.report) if isinstance(layers, Mapping) else ()
    if isinstance(layers, Mapping):
        _report_unknown_layer_fields(layers, parser)
    kind = model_kind(data, parser.report)
    _report_missing(without_unused(data, kind, used), fields, parser)
    parser.raise_findings()

    document = _document({k: data[k] for k in data if k in ModelDocument.model_fields}, parser)
    for field, problem in broken_assumptions(document.assumes, fields):
        parser.report(("assumes", field), problem)
    _check_names(document, entries, parser)
    model = combined(kind or (), (), entries, document.variants, document.wiring, parser)
    kinds = layer_kinds(used, document.layers, parser)
    parser.raise_findings()
    assert model is not None
    return ModelSpec(
        name=name,
        checkpoint=document.checkpoint,
        weight_map=document.weight_map,
        hidden_size=document.hidden_size,
        vocab_size=document.vocab_size,
        max_length=document.max_length,
        variants=model.variants,
        blocks=model.blocks,
        streams=document.layers.streams,
        kinds={kind.name: kind for kind in kinds},
        layer_kinds=tuple(kind.name for kind in kinds),
        wiring=model.wiring,
        sources={key: where(key) for key in _compiled_keys(document, entries)},
    )


def _block_entries(data: Mapping[str, Any], parser: BlockParser) -> dict[str, Any]:
    """The top-level entries that are blocks; other unknown keys are findings."""
    known = set(ModelDocument.model_fields)
    entries = {}
    for key, value in data.items():
        if key in known:
            continue
        if isinstance(value, Mapping):
            entries[key] = value
        elif value is not None:  # null drops an inherited block
            hint = did_you_mean(str(key), known)
            parser.report(
                (key,),
                f"no field of a model.{hint} A block is a mapping with `block:`, not {value!r}",
            )
    return entries


def _check_names(document: ModelDocument, entries: Mapping[str, Any], parser: BlockParser) -> None:
    """Report streams and blocks with names that equations could not use."""
    layers, streams = document.layers, document.layers.streams
    for name in dict.fromkeys(streams):
        if problem := stream_name_problem(name):
            parser.report(("layers", "streams"), problem)
        if streams.count(name) > 1:
            parser.report(("layers", "streams"), f"'{name}' is named twice")
    places: list[tuple[KeyPath, Iterable[str], Sequence[str]]] = [((), entries, ())]
    places += [(("layers", "blocks"), layers.blocks, streams)]
    for place, variant in _all_variants(document).items():
        taken = streams if place[0] == "layers" else ()
        places += [((*place, "blocks"), variant.blocks, taken)]
    for place, names, taken in places:
        for name in names:
            if problem := block_name_problem(name, taken):
                parser.report((*place, name), problem)


def _document(data: Mapping[str, Any], parser: BlockParser) -> ModelDocument:
    try:
        return ModelDocument.model_validate(data)
    except ValidationError as error:
        parser.findings += field_errors(
            error, ModelDocument, parser.registry, lambda key: key, parser.where
        )
        parser.raise_findings()
        raise AssertionError("a validation error has findings") from error


def _report_unknown_layer_fields(layers: Mapping[str, Any], parser: BlockParser) -> None:
    """A misspelt `blocks:` leaves inherited blocks in force, whose missing fields would hide it."""
    known = list(LayersDocument.model_fields)
    for key in layers:
        if key not in known:
            hint = did_you_mean(str(key), known)
            parser.report(
                ("layers", key), f"unknown field '{key}' of Layers.{hint} Known: {', '.join(known)}"
            )


def _report_missing(data: Mapping[str, Any], fields: ConfigFields, parser: BlockParser) -> None:
    for key, value in leaves(data, ()):
        for field in missing_fields(value):
            hint = did_you_mean(field, fields)
            parser.report(key, f"needs '{field}', which {fields.source} does not have.{hint}")


def leaves(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Every scalar below `value`, which stands at `key`, with its own key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, (*key, name))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from leaves(item, (*key, position))
    else:
        yield key, value


def _compiled_keys(document: ModelDocument, entries: Iterable[str]) -> list[KeyPath]:
    """The keys of all blocks and equations: what the compiler may find wrong."""
    layers = document.layers
    keys: list[KeyPath] = [(name,) for name in entries]
    keys += [("wiring", n) for n in range(len(document.wiring))]
    keys += [("layers", "blocks", name) for name in layers.blocks]
    keys += [("layers", "wiring", n) for n in range(len(layers.wiring))]
    for place, taken in _all_variants(document).items():
        keys += [(*place, "blocks", name) for name in taken.blocks]
        keys += [(*place, "wiring", n) for n in range(len(taken.wiring or ()))]
    return keys


def _all_variants(document: ModelDocument) -> dict[KeyPath, VariantDocument]:
    """The variants of the model and of its layers, by key."""
    own = {("variants", kind): variant for kind, variant in document.variants.items()}
    layers = document.layers.variants.items()
    return {**own, **{("layers", "variants", kind): variant for kind, variant in layers}}
