"""Which module of the reference is which of ours: those that hold the same tensors on disk.

Nothing here knows an architecture. The load plan says which tensors fill a block; the block's
counterpart is the deepest module of the reference that owns all of them. Where that one owns the
tensors of other blocks too (an MLP whose two matrices lie in the layer itself), there is none, and
the block is compared from the module it begins with to the one it ends with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from assembler.verifying.reference import Reference
from assembler.weights.plan import LoadPlan


@dataclass(frozen=True)
class Pair:
    """A block and where the reference has it."""

    block: str  # layers.0.attn
    module: str  # model.layers.0.self_attn; that which holds it where it has none of its own
    whole: bool  # the module is the block and nothing else
    leaves: tuple[str, ...]  # the modules that own its tensors, in the order of our parameters

    @property
    def watched(self) -> tuple[str, ...]:
        """The modules whose calls are compared."""
        ends = (self.leaves[0], self.leaves[-1])
        return tuple(dict.fromkeys((self.module, *ends) if self.whole else ends))


class Pairing:
    """Finds the pairs of one plan and one reference."""

    def __init__(self, plan: LoadPlan, reference: Reference) -> None:
        self._reference = reference
        self._modules: dict[str, list[str]] = {}  # by parameter
        for piece in plan.pieces:
            owner = reference.module_of(piece.source)
            if owner is not None:
                self._modules.setdefault(piece.target, []).append(owner)
        self._order = [slot.name for slot in plan.parameters]

    def leaves(self, block: str) -> tuple[str, ...]:
        """The modules that own the tensors of a block."""
        names = (n for n in self._order if n.startswith(f"{block}."))
        found = (module for name in names for module in self._modules.get(name, ()))
        return tuple(dict.fromkeys(found))

    def pairs(self, blocks: Mapping[str, nn.Module]) -> dict[str, Pair]:
        """The pair of each block that has one; blocks without tensors have none."""
        owned = {name: leaves for name in blocks if (leaves := self.leaves(name))}
        pairs = {}
        for name, leaves in owned.items():
            module = _common(leaves)
            others = (leaf for other, found in owned.items() if other != name for leaf in found)
            whole = not any(_is_within(leaf, module) for leaf in others)
            pairs[name] = Pair(name, module, whole, leaves)
        head = self._reference.head
        for name, module in blocks.items():
            if name not in pairs and getattr(module, "tied", False) and head is not None:
                pairs[name] = Pair(name, head, True, (head,))
        return pairs

    def layers(self, count: int) -> dict[str, str]:
        """`layers.{i}` -> the reference's layer i, where it has as many in a list."""
        found = {}
        for i in range(count):
            path = _common(self.leaves(f"layers.{i}"))
            while path:
                parent, _, number = path.rpartition(".")
                stack = self._reference.modules.get(parent)
                if number.isdecimal() and isinstance(stack, nn.ModuleList) and len(stack) >= count:
                    found[f"layers.{i}"] = path
                    break
                path = parent
        return found if len(found) == count == len(set(found.values())) else {}


def _common(modules: Sequence[str]) -> str:
    """The deepest module that holds all of these."""
    shared: list[str] = []
    for names in zip(*(module.split(".") for module in modules), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def _is_within(module: str, other: str) -> bool:
    return not other or module == other or module.startswith(f"{other}.")


def watched(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """All modules of the reference whose calls these pairs compare."""
    return tuple(dict.fromkeys(path for pair in pairs for path in pair.watched))
