"""Resolved YAML data -> `ModelSpec`, with every finding in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from assembler.errors import SpecError, did_you_mean
from assembler.model.assumptions import broken_assumptions
from assembler.model.config_fields import ConfigFields, missing_fields
from assembler.model.field_errors import (
    KeyPath,
    Where,
    dotted,
    field_errors,
    missing_block,
    unknown_block,
)
from assembler.model.inherit import replaces
from assembler.model.kinds import used_kinds, with_named_kinds, without_unused
from assembler.model.names import block_name_problem, stream_name_problem
from assembler.model.registry import BlockRegistry, BlockSpec
from assembler.model.spec import LayerKind, LayersDocument, ModelDocument, ModelSpec


class _Parser:
    """Collects findings while the parts of a spec are validated."""

    def __init__(self, registry: BlockRegistry, where: Where) -> None:
        self.registry = registry
        self.where = where
        self.findings: list[str] = []

    def report(self, key: KeyPath, message: str) -> None:
        self.findings.append(f"{self.where(key)}: {dotted(key)}: {message}")

    def raise_findings(self) -> None:
        if self.findings:
            raise SpecError("\n".join(dict.fromkeys(self.findings)))

    def block(
        self, data: Mapping[str, Any], key_of: Callable[[KeyPath], KeyPath], others: Iterable[str]
    ) -> BlockSpec | None:
        """Validate one block entry.

        `key_of` gives the YAML key of a path inside it; `others` are the entries beside it, one of
        which may be meant.
        """
        name = data.get("block")
        if name is None:
            self.report(key := key_of(()), missing_block(str(key[-1]), others, self.registry))
            return None
        if not isinstance(name, str) or name not in self.registry:
            self.report(key_of(("block",)), unknown_block(name, self.registry))
            return None
        model = self.registry[name]
        try:
            return model.model_validate(data)
        except ValidationError as error:
            self.findings += field_errors(error, model, self.registry, key_of, self.where)
            return None


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
    parser = _Parser(registry, where)
    data = with_named_kinds({key: value for key, value in data.items() if key != "defaults"})
    entries = _block_entries(data, parser)
    layers = data.get("layers")
    used = used_kinds(layers, parser.report) if isinstance(layers, Mapping) else ()
    if isinstance(layers, Mapping):
        _report_unknown_layer_fields(layers, parser)
    _report_missing(without_unused(data, used), fields, parser)
    parser.raise_findings()

    document = _document({k: data[k] for k in data if k in ModelDocument.model_fields}, parser)
    for field, problem in broken_assumptions(document.assumes, fields):
        parser.report(("assumes", field), problem)
    _check_names(document, entries, parser)
    blocks = {
        name: parser.block(entry, lambda key, name=name: (name, *key), set(entries) - {name})
        for name, entry in entries.items()
    }
    kinds = {kind: _layer_kind(kind, document.layers, parser) for kind in dict.fromkeys(used)}
    parser.raise_findings()
    return ModelSpec(
        name=name,
        checkpoint=document.checkpoint,
        weight_map=document.weight_map,
        hidden_size=document.hidden_size,
        vocab_size=document.vocab_size,
        max_length=document.max_length,
        blocks=blocks,
        streams=document.layers.streams,
        kinds=kinds,
        layer_kinds=used,
        wiring=document.wiring,
        sources={key: where(key) for key in _compiled_keys(document, entries)},
    )


def _block_entries(data: Mapping[str, Any], parser: _Parser) -> dict[str, Any]:
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


def _check_names(document: ModelDocument, entries: Mapping[str, Any], parser: _Parser) -> None:
    """Report streams and blocks with names that equations could not use."""
    layers, streams = document.layers, document.layers.streams
    for name in dict.fromkeys(streams):
        if problem := stream_name_problem(name):
            parser.report(("layers", "streams"), problem)
        if streams.count(name) > 1:
            parser.report(("layers", "streams"), f"'{name}' is named twice")
    places: list[tuple[KeyPath, Iterable[str], Sequence[str]]] = [((), entries, ())]
    places += [(("layers", "blocks"), layers.blocks, streams)]
    places += [
        (("layers", "variants", kind, "blocks"), variant.blocks, streams)
        for kind, variant in layers.variants.items()
    ]
    for place, names, taken in places:
        for name in names:
            if problem := block_name_problem(name, taken):
                parser.report((*place, name), problem)


def _document(data: Mapping[str, Any], parser: _Parser) -> ModelDocument:
    try:
        return ModelDocument.model_validate(data)
    except ValidationError as error:
        parser.findings += field_errors(
            error, ModelDocument, parser.registry, lambda key: key, parser.where
        )
        parser.raise_findings()
        raise AssertionError("a validation error has findings") from error


def _layer_kind(kind: str, layers: LayersDocument, parser: _Parser) -> LayerKind | None:
    """The shared layer with the changes of one variant."""
    variant = layers.variants.get(kind)
    own = variant.blocks if variant is not None else {}
    shared = {name: block for name, block in layers.blocks.items() if block is not None}
    blocks: dict[str, BlockSpec | None] = {}
    for name in [*shared, *(n for n in own if n not in shared)]:
        base, change = shared.get(name, {}), own.get(name, {})
        if change is None:
            if name not in shared:
                hint = did_you_mean(name, shared)
                key = ("layers", "variants", kind, "blocks", name)
                parser.report(key, f"null drops a shared block, and there is none by it.{hint}")
            continue
        entry = change if replaces(base, change) else {**base, **change}

        def key_of(path: KeyPath, name: str = name, change: Mapping[str, Any] = change) -> KeyPath:
            if name not in shared or (path and path[0] in change):
                return ("layers", "variants", kind, "blocks", name, *path)
            return ("layers", "blocks", name, *path)

        blocks[name] = parser.block(entry, key_of, set(shared) - {name})
    if any(spec is None for spec in blocks.values()):
        return None
    wiring = layers.wiring if variant is None or variant.wiring is None else variant.wiring
    return LayerKind(name=kind, blocks=blocks, wiring=wiring)


def _report_unknown_layer_fields(layers: Mapping[str, Any], parser: _Parser) -> None:
    """A misspelt `blocks:` leaves inherited blocks in force, whose missing fields would hide it."""
    known = list(LayersDocument.model_fields)
    for key in layers:
        if key not in known:
            hint = did_you_mean(str(key), known)
            parser.report(
                ("layers", key), f"unknown field '{key}' of Layers.{hint} Known: {', '.join(known)}"
            )


def _report_missing(data: Mapping[str, Any], fields: ConfigFields, parser: _Parser) -> None:
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
    for kind, variant in layers.variants.items():
        place = ("layers", "variants", kind)
        keys += [(*place, "blocks", name) for name in variant.blocks]
        keys += [(*place, "wiring", n) for n in range(len(variant.wiring or ()))]
    return keys
