"""What all kinds of a place share and the variants laid over it -> validated blocks and equations.

The place is a model or its layers; the variants are those that one kind is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from assembler.errors import SpecError, did_you_mean
from assembler.model.field_errors import (
    KeyPath,
    Where,
    dotted,
    field_errors,
    missing_block,
    unknown_block,
)
from assembler.model.inherit import replaces
from assembler.model.kinds import Kind, kind_name
from assembler.model.per_layer import LayerFields, differs_by_layer
from assembler.model.registry import BlockRegistry, BlockSpec
from assembler.model.spec import Equations, LayerKind, LayersDocument, VariantDocument


class BlockParser:
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


def layer_kinds(
    used: Sequence[Kind], layers: LayersDocument, parser: BlockParser
) -> Sequence[LayerKind | None]:
    """What each layer is: the shared one with the changes of its variants and its own fields.

    Layers that are alike are the same object; None for those with findings.
    """
    blocks = (layers.blocks, *(variant.blocks for variant in layers.variants.values()))
    if not any(map(differs_by_layer, blocks)):
        made = {kind: layer_kind(kind, layers, parser) for kind in dict.fromkeys(used)}
        return [made[kind] for kind in used]
    distinct: list[LayerKind] = []
    found: list[LayerKind | None] = []
    for i, variants in enumerate(used):
        kind = layer_kind(variants, layers, parser, LayerFields(i, len(used), parser.report))
        if kind is None:  # what is wrong with one layer need not be said of each
            return [None]
        same = (k for k in distinct if (k.variants, k.blocks) == (kind.variants, kind.blocks))
        if (known := next(same, None)) is None:
            known = kind.model_copy(update={"name": f"{kind.name}+layer_{i}"})
            distinct.append(known)
        found.append(known)
    return found


def layer_kind(
    kind: Kind, layers: LayersDocument, parser: BlockParser, fields: LayerFields | None = None
) -> LayerKind | None:
    """The shared layer with the changes of its variants; `fields` if one differs by layer."""
    shared = {name: block for name, block in layers.blocks.items() if block is not None}
    place = ("layers",)
    return combined(kind, place, shared, layers.variants, layers.wiring, parser, fields)


def combined(
    kind: Kind,
    place: KeyPath,
    shared: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, VariantDocument],
    wiring: Equations,
    parser: BlockParser,
    fields: LayerFields | None = None,
) -> LayerKind | None:
    """What all kinds of a place share, with the changes of this one's variants laid over it.

    `fields`: what is different in each layer, where something is.
    """
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
    blocks = {}
    for name, entry in entries.items():
        data = entry.data if fields is None else fields.of(entry.data, entry.key_of)
        others = set(shared) - {name}
        blocks[name] = None if data is None else parser.block(data, entry.key_of, others)
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


def _wiring_of(
    variants: Mapping[KeyPath, VariantDocument], parser: BlockParser
) -> Equations | None:
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
