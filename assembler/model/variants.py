"""What all kinds of a place share and the variants laid over it -> validated blocks and equations.

The place is a model or its layers; the variants are those that one kind is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


def layer_kind(kind: Kind, layers: LayersDocument, parser: BlockParser) -> LayerKind | None:
    """The shared layer with the changes of its variants."""
    shared = {name: block for name, block in layers.blocks.items() if block is not None}
    place = ("layers",)
    return combined(kind, place, shared, layers.variants, layers.wiring, parser)


def combined(
    kind: Kind,
    place: KeyPath,
    shared: Mapping[str, Mapping[str, Any]],
    variants: Mapping[str, VariantDocument],
    wiring: Equations,
    parser: BlockParser,
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
