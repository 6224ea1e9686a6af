"""What a drafted model has, against what the tensors show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assembler.drafting import templates
from assembler.drafting.anatomy import Anatomy
from assembler.drafting.sheet import Sheet
from assembler.model.spec import LayerKind, ModelSpec

LAYER_NORMS = ("attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")
SEEN = "the tensors show it"
ABSENT = "no tensor of that name"


@dataclass(frozen=True)
class Comparison:
    """One round: the draft, what its model has, and the tensors.

    Without a model (`spec` None: the draft cannot be built yet) everything is said anew.
    """

    sheet: Sheet
    anatomy: Anatomy
    spec: ModelSpec | None
    inside: Mapping[int, set[str]]  # the model's parameters, by layer
    outside: set[str]

    @property
    def missing(self) -> set[str]:
        """Parameters that the tensors show and some layer lacks."""
        layers = range(self.anatomy.inventory.count)
        return set().union(
            *(self.anatomy.layer_leaves(i) - self.inside.get(i, set()) for i in layers)
        )

    @property
    def extra(self) -> set[str]:
        """Parameters that some layer has and no tensor is for."""
        layers = range(self.anatomy.inventory.count)
        return set().union(
            *(self.inside.get(i, set()) - self.anatomy.layer_leaves(i) for i in layers)
        )

    def block(self, name: str) -> Any:
        """What the draft has as a layer's block of that name."""
        return self.sheet.get(("layers", "blocks", name))

    def built(self, name: str) -> Any:
        """That block as it was validated, in the first layer that has it; None without."""
        if self.spec is None:
            return None
        kinds = (self.spec.kinds[kind] for kind in self.spec.layer_kinds)
        return next((kind.blocks[name] for kind in kinds if name in kind.blocks), None)

    def off(self, *prefixes: str) -> bool:
        """Whether something that begins so is missing or too much, or nothing is known."""
        if self.spec is None:
            return True
        return any(leaf.startswith(prefixes) for leaf in self.missing | self.extra)

    def wants(self, leaf: str) -> bool | None:
        """True if a parameter is missing, False if it is too much, None if all is well."""
        if self.spec is None:
            return leaf in self.missing
        return True if leaf in self.missing else False if leaf in self.extra else None

    def flag(self, block: str, field: str, leaf: str) -> None:
        """A field that says whether a parameter is there."""
        wanted, own = self.wants(leaf), self.sheet.get(("layers", "blocks", block, field))
        if (
            wanted is None
            or (isinstance(own, bool) and own == wanted)
            or (own is None and not wanted)
        ):
            return
        self.sheet.set_block(block, field, self.sheet.flag_ref(block, wanted), SEEN)

    def nested_norm(self, block: str, field: str, leaf: str) -> None:
        """A field that holds a norm."""
        wanted = self.wants(leaf)
        if wanted is not None and bool(self.block(block).get(field)) != wanted:
            self.sheet.set_block(block, field, self.norm(False, None) if wanted else None, SEEN)

    def norm(self, bias: bool, like: Any) -> dict[str, Any]:
        """A norm as those of the layers."""
        shared = next((b for n in LAYER_NORMS if isinstance(b := self.block(n), dict)), None)
        return templates.norm_block(self.sheet, bias=bias, like=like or shared)

    def replace(self, name: str, block: dict[str, Any]) -> None:
        """Put a whole block in the place of another, in variants too."""
        why = "the tensors are of another kind of block"
        self.sheet.set(("layers", "blocks", name), block, why)
        for variant, contents in (self.sheet.get(("layers", "variants")) or {}).items():
            own = ((contents or {}).get("blocks") or {}).get(name)
            if isinstance(own, dict) and "block" in own:
                self.sheet.set(("layers", "variants", variant, "blocks", name), block, why)

    def drop(self, name: str) -> None:
        """Take a block out of the layers."""
        self.sheet.set(("layers", "blocks", name), None, ABSENT)

    def blocks_of(self, layer: int) -> frozenset[str]:
        """The blocks that a layer shall have, by its tensors; norms without weights too."""
        names = {leaf.partition(".")[0] for leaf in self.anatomy.layer_leaves(layer)}
        for name in LAYER_NORMS:
            block = self.block(name)
            if isinstance(block, dict) and block.get("weight") is False:
                names.add(name)
        return frozenset(names)

    def kinds(self) -> list[tuple[LayerKind, int]]:
        """Each kind of layer with the first layer of it."""
        if self.spec is None:
            return []
        return [(kind, self.spec.layer_kinds.index(name)) for name, kind in self.spec.kinds.items()]
