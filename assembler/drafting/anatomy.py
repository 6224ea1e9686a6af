"""What the tensors of a checkpoint are for: a role for each, by its name and its shape.

The result is stated in the house's terms: for every module that a model of this checkpoint must
have, its parameters and the weight-map rule that fills it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assembler.drafting import vocabulary as words
from assembler.drafting.feed_forward import feed_forward_part
from assembler.drafting.inventory import Inventory, Tensor
from assembler.drafting.layer_parts import LayerParts, Piece
from assembler.drafting.norm_places import name_norms


@dataclass(frozen=True)
class Anatomy:
    """All parts, and the tensors that no word of the vocabulary fits."""

    inventory: Inventory
    parts: Mapping[str, Piece]  # by target; layer targets begin with "layers."
    unknown: tuple[str, ...]
    hidden: int | None  # width of the stream
    after_branches: bool  # the names say that norms stand behind the branches only

    def layer_leaves(self, layer: int) -> set[str]:
        """The parameters that a layer must have, such as "attn.qkv.bias"."""
        return {
            f"{part.target}.{leaf}" if leaf else part.target
            for part in self.parts.values()
            if layer in part.layers
            for leaf in part.leaves
        }

    def outside_leaves(self) -> set[str]:
        """The parameters outside of the layers."""
        return {
            f"{part.target}.{leaf}"
            for part in self.parts.values()
            if not part.layers
            for leaf in part.leaves
        }

    def has(self, target: str) -> bool:
        """Whether some layer has a part of that name, or something inside of it."""
        key = f"layers.{target}"
        return any(name == key or name.startswith(f"{key}.") for name in self.parts)


def read_anatomy(inventory: Inventory, hidden: int | None) -> Anatomy:
    """Give every tensor of `inventory` a role; `hidden` is the width of the stream, if known."""
    unknown: list[str] = []
    parts: dict[str, Piece] = _outside(inventory.outside, unknown)
    if hidden is None and "embed" in parts:
        hidden = parts["embed"].shape[-1]
    roles: dict[str, list[Tensor]] = defaultdict(list)
    norms: list[Tensor] = []
    for tensor in inventory.layer:
        role = _role(tensor)
        if role == "norm?":
            norms.append(tensor)
        elif role is None:
            unknown.append(f"{inventory.stem}.{{i}}.{tensor.name}")
        else:
            roles[role].append(tensor)
    named, after = name_norms(norms)
    for target, tensors in named.items():
        roles[target] += tensors
    for piece in LayerParts(roles, hidden).pieces():
        parts[f"layers.{piece.target}"] = piece
    return Anatomy(inventory, parts, tuple(unknown), hidden, after)


def _role(tensor: Tensor) -> str | None:
    """The role of a tensor in a layer; "norm?" for a norm whose place others decide."""
    name = tensor.module
    attention = words.IN_ATTENTION.search(f"{name}.") and words.IN_ATTENTION.search(tensor.name)
    if words.SINKS.search(name):
        return "attn.sinks"
    if words.SELECTION_BIAS.search(name):
        return "moe.router.selection_bias"
    for role, pattern in (("attn.q_norm", words.Q_NORM), ("attn.k_norm", words.K_NORM)):
        if pattern.search(name):
            return role
    for role, pattern in words.LATENT_NORMS:
        if pattern.search(name):
            return role
    if words.OUT_NORM.search(name):
        return "attn.out_norm"
    if words.INNER_NORM.search(name) and "layer_norm" not in name:
        return "mlp.inner_norm"
    if words.ACTIVATION.search(tensor.name):
        return "mlp.act"
    if len(tensor.shape) == 1 and ("norm" in name or "ln" in name) and tensor.leaf:
        return "norm?"
    if attention:
        if found := next((r for r, p in words.ATTENTION_ROLES if p.search(name)), None):
            return f"attn.{found}"
        if name.endswith("_bias") and (role := _role(Tensor(name[:-5] + ".bias", tensor.shape))):
            return role
    return feed_forward_part(tensor)


def _outside(tensors: Sequence[Tensor], unknown: list[str]) -> dict[str, Piece]:
    """The pieces outside of the layers."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        role = next((r for r, p in words.OUTSIDE_ROLES if p.search(tensor.module)), None)
        if role is None or (role in found and found[role][0].module != tensor.module):
            unknown.append(tensor.name)
        else:
            found[role].append(tensor)
    if "embed" in found and "lm_head" not in found:
        _head_by_shape(tensors, unknown, found)
    pieces = {}
    for role, same in found.items():
        leaves = frozenset(tensor.leaf for tensor in same)
        shape = next((tensor.shape for tensor in same if tensor.leaf == "weight"), ())
        pieces[role] = Piece(role, same[0].module, leaves, (), "", shape)
    return pieces


def _head_by_shape(
    tensors: Sequence[Tensor], unknown: list[str], found: dict[str, list[Tensor]]
) -> None:
    """Of tensors of unknown use, the one matrix of the embedding's shape is the head."""
    shape = next((t.shape for t in found["embed"] if t.leaf == "weight"), None)
    heads = [t for t in tensors if t.name in unknown and t.leaf == "weight" and t.shape == shape]
    if len(heads) == 1:
        module = heads[0].module
        found["lm_head"] = [t for t in tensors if t.module == module]
        unknown[:] = [name for name in unknown if name.rpartition(".")[0] != module]
