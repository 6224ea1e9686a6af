"""Resolved YAML data -> `ModelSpec`, with every finding in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from assembler.errors import SpecError, did_you_mean
from assembler.model import expressions
from assembler.model.config_fields import ConfigFields, missing_fields
from assembler.model.field_errors import KeyPath, Where, dotted, field_errors, unknown_block
from assembler.model.registry import BlockRegistry, BlockSpec
from assembler.model.spec import LayerKind, LayersDocument, ModelDocument, ModelSpec

_ONLY_KIND = "layer"  # the name of the kind when all layers are alike


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

    def block(self, data: Any, key_of: Callable[[KeyPath], KeyPath]) -> BlockSpec | None:
        """Validate one block entry; `key_of` gives the YAML key of a path inside it."""
        name = data.get("block") if isinstance(data, Mapping) else None
        if name not in self.registry:
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
    data = {key: value for key, value in data.items() if key != "defaults"}
    entries = _block_entries(data, parser)
    layers = data.get("layers")
    used = _used_kinds(layers, parser) if isinstance(layers, Mapping) else ()
    _report_missing(_without_unused(data, used), fields, parser)
    parser.raise_findings()

    known = {key: data[key] for key in data if key in ModelDocument.model_fields}
    document = _document(known, parser)
    assert document is not None
    blocks = {n: parser.block(e, lambda key, n=n: (n, *key)) for n, e in entries.items()}
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
        sources=_wiring_sources(document, where),
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
                (key,), f"unknown field.{hint} A block of your own is a mapping with `block:`"
            )
    return entries


def _document(data: Mapping[str, Any], parser: _Parser) -> ModelDocument | None:
    try:
        return ModelDocument.model_validate(data)
    except ValidationError as error:
        parser.findings += field_errors(
            error, ModelDocument, parser.registry, lambda key: key, parser.where
        )
        parser.raise_findings()
    return None


def _used_kinds(layers: Mapping[str, Any], parser: _Parser) -> tuple[str, ...]:
    """The kind of each layer."""
    count, kinds = layers.get("count"), layers.get("kinds")
    variants = layers.get("variants") or {}
    if not isinstance(count, int) or count < 1 or missing_fields(kinds):
        return ()  # reported elsewhere, as a wrong or missing field
    if kinds is None:
        if len(variants) > 1:
            parser.report(("layers", "kinds"), "needed: it says which variant each layer is")
        return tuple(variants or [_ONLY_KIND]) * count
    key = ("layers", "kinds")
    if isinstance(kinds, str):
        try:
            kinds = _kinds_by_rule(kinds, count, variants)
        except SpecError as error:
            parser.report(key, str(error))
            return ()
    if len(kinds) < count:
        parser.report(key, f"names {len(kinds)} layers, but layers.count is {count}")
    for kind in dict.fromkeys(map(str, kinds)):
        if kind not in variants:
            hint = did_you_mean(kind, variants)
            parser.report(key, f"'{kind}' has no entry in layers.variants.{hint}")
    return tuple(map(str, kinds[:count]))


def _kinds_by_rule(rule: str, count: int, variants: Mapping[str, Any]) -> list[str]:
    tree = expressions.parse(rule)

    def value(i: int, name: str) -> Any:
        if name == "i":
            return i
        if name in variants:
            return name
        known = ["i", *variants]
        raise SpecError(f"unknown name '{name}' in '{rule}'.{did_you_mean(name, known)}")

    return [expressions.evaluate(tree, lambda name, i=i: value(i, name)) for i in range(count)]


def _layer_kind(kind: str, layers: LayersDocument, parser: _Parser) -> LayerKind | None:
    """The shared layer with the changes of one variant."""
    variant = layers.variants.get(kind)
    own = variant.blocks if variant is not None else {}
    blocks: dict[str, BlockSpec | None] = {}
    for name in [*layers.blocks, *(n for n in own if n not in layers.blocks)]:
        change = own.get(name, {})
        if change is None:
            continue
        base = layers.blocks.get(name)
        if base is None and name not in own:
            continue
        base = base or {}
        # Another block takes nothing over from the one it replaces.
        keeps = change.get("block", base.get("block")) == base.get("block")
        entry = {**base, **change} if keeps else change

        def key_of(path: KeyPath, name: str = name, change: Mapping[str, Any] = change) -> KeyPath:
            if path and path[0] in change:
                return ("layers", "variants", kind, "blocks", name, *path)
            return ("layers", "blocks", name, *path)

        blocks[name] = parser.block(entry, key_of)
    if any(spec is None for spec in blocks.values()):
        return None
    wiring = variant.wiring if variant is not None and variant.wiring is not None else None
    return LayerKind(name=kind, blocks=blocks, wiring=wiring or layers.wiring)


def _without_unused(data: Mapping[str, Any], used: tuple[str, ...]) -> dict[str, Any]:
    """`data` without the variants no layer is: what they need, this checkpoint need not have."""
    layers = data.get("layers")
    if not used or not isinstance(layers, Mapping):
        return dict(data)
    variants = {k: v for k, v in (layers.get("variants") or {}).items() if k in used}
    return {**data, "layers": {**layers, "variants": variants}}


def _report_missing(data: Mapping[str, Any], fields: ConfigFields, parser: _Parser) -> None:
    for key, value in _leaves(data, ()):
        for field in missing_fields(value):
            hint = did_you_mean(field, fields)
            parser.report(key, f"needs '{field}', which {fields.source} does not have.{hint}")


def _leaves(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, (*key, name))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _leaves(item, (*key, position))
    else:
        yield key, value


def _wiring_sources(document: ModelDocument, where: Where) -> dict[KeyPath, str]:
    keys: list[KeyPath] = [("wiring", n) for n in range(len(document.wiring))]
    keys += [("layers", "wiring", n) for n in range(len(document.layers.wiring))]
    for kind, variant in document.layers.variants.items():
        equations = variant.wiring or ()
        keys += [("layers", "variants", kind, "wiring", n) for n in range(len(equations))]
    return {key: where(key) for key in keys}
