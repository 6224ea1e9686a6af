"""Resolved YAML data -> `ModelSpec`, with every finding in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from assembler.model.kinds import (
    Kind,
    kind_name,
    model_kind,
    used_kinds,
    with_named_kinds,
    without_unused,
)
from assembler.model.names import block_name_problem, stream_name_problem
from assembler.model.registry import BlockRegistry, BlockSpec
from assembler.model.spec import (
    Equations,
    LayerKind,
    LayersDocument,
    ModelDocument,
    ModelSpec,
    VariantDocument,
)


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
    kind = model_kind(data, parser.report)
    _report_missing(without_unused(data, kind, used), fields, parser)
    parser.raise_findings()

    document = _document({k: data[k] for k in data if k in ModelDocument.model_fields}, parser)
    for field, problem in broken_assumptions(document.assumes, fields):
        parser.report(("assumes", field), problem)
    _check_names(document, entries, parser)
    model = _combined(kind or (), (), entries, document.variants, document.wiring, parser)
    kinds = {
        kind_name(kind): _layer_kind(kind, document.layers, parser) for kind in dict.fromkeys(used)
    }
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
        kinds=kinds,
        layer_kinds=tuple(map(kind_name, used)),
        wiring=model.wiring,
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
    for place, variant in _all_variants(document).items():
        taken = streams if place[0] == "layers" else ()
        places += [((*place, "blocks"), variant.blocks, taken)]
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


def _layer_kind(kind: Kind, layers: LayersDocument, parser: _Parser) -> LayerKind | None:
    """The shared layer with the changes of its variants."""
    shared = {name: block for name, block in layers.blocks.items() if block is not None}
    place = ("layers",)
    return _combined(kind, place, shared, layers.variants, layers.wiring, parser)


def _combined(
    kind: Kind,
    place: KeyPath,
    shared: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, VariantDocument],
    wiring: Equations,
    parser: _Parser,
) -> LayerKind | None:
    """What all kinds of a place share, with the changes of this one's variants laid over it."""
    own = {(*place, "variants", name): variants.get(name) or VariantDocument() for name in kind}
    where = (*place, "blocks") if place else ()
    entries = {name: _Entry(block, [((*where, name), block)]) for name, block in shared.items()}
    for key, variant in own.items():
        for name, change in variant.blocks.items():
            at = (*key, "blocks", name)
            if change is not None:
                entries[name] = entries.get(name, _Entry({}, [])).changed(change, at)
            elif entries.pop(name, None) is None:
                hint = did_you_mean(name, entries)
                parser.report(at, f"null drops a shared block, and there is none by it.{hint}")
    blocks = {
        name: parser.block(entry.data, entry.key_of, set(shared) - {name})
        for name, entry in entries.items()
    }
    own_wiring = _wiring_of(own, parser)
    if any(spec is None for spec in blocks.values()):
        return None
    wiring = wiring if own_wiring is None else own_wiring
    return LayerKind(name=kind_name(kind), variants=kind, blocks=blocks, wiring=wiring)


@dataclass(frozen=True)
class _Entry:
    """One block of a layer while the variants of its kind are laid over it."""

    data: Mapping[str, Any]
    parts: list[tuple[KeyPath, Mapping[str, Any]]]  # what it is put together of, by YAML key

    def changed(self, change: Mapping[str, Any], key: KeyPath) -> _Entry:
        if replaces(self.data, change):
            return _Entry(change, [(key, change)])
        return _Entry({**self.data, **change}, [*self.parts, (key, change)])

    def key_of(self, path: KeyPath) -> KeyPath:
        """The YAML key of a path inside the block: below the last part that sets its field."""
        for key, part in reversed(self.parts):
            if path and path[0] in part:
                return (*key, *path)
        return (*self.parts[0][0], *path)


def _wiring_of(variants: Mapping[KeyPath, VariantDocument], parser: _Parser) -> Equations | None:
    """The equations that the variants of one layer give; more than one set is a finding."""
    given = {key: variant.wiring for key, variant in variants.items() if variant.wiring is not None}
    if len(set(given.values())) > 1:
        first, *_, last = given
        parser.report(
            (*last, "wiring"),
            f"what is '{first[-1]}' and '{last[-1]}' would have two wirings. Give one axis the "
            "wiring, with a kind for each combination that needs its own",
        )
    return next(reversed(given.values()), None)


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
    for place, taken in _all_variants(document).items():
        keys += [(*place, "blocks", name) for name in taken.blocks]
        keys += [(*place, "wiring", n) for n in range(len(taken.wiring or ()))]
    return keys


def _all_variants(document: ModelDocument) -> dict[KeyPath, VariantDocument]:
    """The variants of the model and of its layers, by key."""
    own = {("variants", kind): variant for kind, variant in document.variants.items()}
    layers = document.layers.variants.items()
    return {**own, **{("layers", "variants", kind): variant for kind, variant in layers}}
