"""From the roles of a layer's tensors to its modules and the rules that fill them.

Here it is decided how a tensor lies on disk: apart or fused, one an expert or stacked, transposed
or not. What shapes cannot show (which rows of a fused tensor are whose) is marked as a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assembler.drafting.inventory import Tensor

_NAMES_BY_HEAD = "query_key_value"  # the word under which q, k and v lie head by head
_PLAIN = (
    "attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm", "attn.q_norm", "attn.k_norm",
    "attn.q_a_norm", "attn.kv_a_norm", "attn.out_norm", "mlp.inner_norm", "moe.router",
    "shared_gate",
)  # fmt: skip
_PLACED = ("attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")
_MATRICES = ("attn.o", "attn.gate.proj", "attn.q_a", "attn.q_b")


@dataclass(frozen=True)
class Piece:
    """A module or a parameter of a layer, where it comes from, and what of that is a guess."""

    target: str
    rule: Any
    leaves: frozenset[str]
    layers: tuple[int, ...]
    guess: str = ""
    shape: tuple[int, ...] = ()  # of the weight on disk
    rows: tuple[int, ...] = ()  # of each source's output, for queries, keys and values


class LayerParts:
    """Makes the pieces of a layer from the tensors of each role."""

    def __init__(self, roles: Mapping[str, Sequence[Tensor]], hidden: int | None) -> None:
        self.roles = roles
        self.hidden = hidden
        self.conv1d = any(map(self._input_first, roles.get("mlp.up", ())))

    def pieces(self) -> Iterator[Piece]:
        """All of them."""
        for target in _PLAIN:
            guess = "where it stands, by its name" if target in _PLACED else ""
            yield from self._module(target, guess=guess, transposable=False)
        for target in _MATRICES:
            yield from self._module(target)
        yield from self._attention()
        yield from self._parameter("attn.sinks")
        yield from self._selection_bias()
        yield from self._activation()
        for place in ("mlp", "shared"):
            yield from self._feed_forward(place)
        yield from self._experts()

    def _attention(self) -> Iterator[Piece]:
        latent = "attn.kv_a" in self.roles
        if not latent:
            yield from self._merged("attn.qkv", ("attn.q", "attn.k", "attn.v"))
        else:
            yield from self._module("attn.q")
            yield from self._module("attn.kv_a", parts=["latent", "rope"])
            yield from self._module("attn.kv_b", parts=["k", "v"], per="head")
        options: dict[str, Any] = {"parts": ["q", "k", "v"]}
        guess = "the order of the rows in the fused tensor"
        if any(_NAMES_BY_HEAD in t.name for t in self.roles.get("attn.qkv", ())):
            options["per"] = "kv_head"
        yield from self._module("attn.qkv", guess=guess, **options)

    def _feed_forward(self, place: str) -> Iterator[Piece]:
        fused = self._fused_role(place)
        if fused is not None:
            guess = "gate before up in the fused tensor"
            parts = ["gate", "up"]
            yield from self._module(f"{place}.gate_up", role=fused, parts=parts, guess=guess)
        elif {f"{place}.gate", f"{place}.up"} <= self.roles.keys():
            yield from self._merged(f"{place}.gate_up", (f"{place}.gate", f"{place}.up"))
        else:
            lone = "up" if f"{place}.up" in self.roles else "gate"
            yield from self._module(f"{place}.up", role=f"{place}.{lone}")
        yield from self._module(f"{place}.down")

    def _fused_role(self, place: str) -> str | None:
        """The role whose tensor holds gate and up: the word says so, or twice the rows."""
        if f"{place}.gate_up" in self.roles:
            return f"{place}.gate_up"
        up, down = self.roles.get(f"{place}.up"), self.roles.get(f"{place}.down")
        if up and down and f"{place}.gate" not in self.roles:
            widths = [
                max(_weight(t).shape[-2:], key=lambda n: n != self.hidden) for t in (up, down)
            ]
            if widths[0] == 2 * widths[1]:
                return f"{place}.up"
        return None

    def _experts(self) -> Iterator[Piece]:
        place = "moe.experts"
        down = self.roles.get(f"{place}.down")
        if not down:
            return
        weight = _weight(down)
        if weight.stacked:  # one tensor an expert
            yield from self._feed_forward(place)
        elif len(weight.shape) == 2:  # the rows of all experts one behind the other
            yield from self._flat_experts()
        else:
            yield from self._stacked(f"{place}.gate_up", self._fused_role(place), ["gate", "up"])
            yield from self._stacked(f"{place}.down", f"{place}.down", None)

    def _stacked(self, target: str, role: str | None, parts: list[str] | None) -> Iterator[Piece]:
        """Experts stacked in one tensor, whose name may end without `.weight`."""
        for tensor in self.roles.get(role or "", ()):
            bias = tensor.leaf == "bias" or tensor.name.endswith("_bias")
            rule: dict[str, Any] = {"from": tensor.name if not tensor.leaf else tensor.module}
            # A weight [experts, in, out] has the stream first in what is up, last in what is down.
            across = (1, 2) if parts else (2, 1)
            sizes = tensor.shape
            if not bias and sizes[across[0]] == self.hidden != sizes[across[1]]:
                rule["transpose"] = True
            if parts:
                rule["parts"] = parts
            path = target if tensor.leaf else f"{target}.{'bias' if bias else 'weight'}"
            leaf = tensor.leaf
            guess = "gate before up in the fused tensor" if parts else ""
            yield Piece(path, _short(rule), frozenset({leaf}), tensor.layers, guess, sizes)

    def _flat_experts(self) -> Iterator[Piece]:
        """Matrices [experts * width, hidden], the last one too."""
        place = "moe.experts"
        up = [
            _weight(self.roles[role])
            for role in (f"{place}.gate", f"{place}.up")
            if role in self.roles
        ]
        down = _weight(self.roles[f"{place}.down"])
        rows = [{"from": t.name, "rearrange": "(e i) h -> e i h"} for t in up]
        guess = "how the rows of all experts lie in one matrix"
        yield Piece(
            f"{place}.gate_up.weight", rows, frozenset({""}), down.layers, guess, up[0].shape
        )
        rule = {"from": down.name, "rearrange": "(e i) h -> e h i"}
        yield Piece(f"{place}.down.weight", rule, frozenset({""}), down.layers, guess, down.shape)

    def _module(
        self,
        target: str,
        *,
        role: str = "",
        guess: str = "",
        transposable: bool = True,
        **options: Any,
    ) -> Iterator[Piece]:
        """A module with one source; parameters without a leaf on disk get rules of their own."""
        tensors = self.roles.get(role or target, ())
        whole = [tensor for tensor in tensors if tensor.leaf]
        for tensor in tensors:
            if not tensor.leaf:
                leaf = "bias" if tensor.name.endswith("_bias") else "weight"
                yield Piece(f"{target}.{leaf}", tensor.name, frozenset({""}), tensor.layers)
        if not whole:
            return
        weight = _weight(whole)
        rule: dict[str, Any] = {"from": weight.module, **options}
        if transposable and self._transposed(weight):
            rule["transpose"] = True
        layers = tuple(sorted({layer for tensor in whole for layer in tensor.layers}))
        leaves = frozenset(tensor.leaf for tensor in whole)
        rows = (weight.shape[-1 if rule.get("transpose") else 0],) if len(weight.shape) > 1 else ()
        yield Piece(target, _short(rule), leaves, layers, guess, weight.shape, rows)

    def _merged(self, target: str, roles: tuple[str, ...]) -> Iterator[Piece]:
        """A fused module whose parts are apart on disk."""
        if not all(role in self.roles for role in roles):
            return
        weights = [_weight(self.roles[role]) for role in roles]
        first = self.roles[roles[0]]
        rule: Any = [weight.module for weight in weights]
        if self._transposed(weights[0]):
            rule = {"from": rule, "transpose": True}
        leaves = frozenset(tensor.leaf for tensor in first if tensor.leaf)
        side = 1 if self.conv1d else 0
        rows = tuple(weight.shape[side] for weight in weights if len(weight.shape) > 1)
        yield Piece(target, rule, leaves, weights[0].layers, "", weights[0].shape, rows)

    def _parameter(self, target: str) -> Iterator[Piece]:
        for tensor in self.roles.get(target, ()):
            name = tensor.name
            yield Piece(target, name, frozenset({""}), tensor.layers, "", tensor.shape)

    def _selection_bias(self) -> Iterator[Piece]:
        target = "moe.router.selection_bias"
        for tensor in self.roles.get(target, ()):
            rule: dict[str, Any] = {"from": tensor.name, "dtype": "float32"}
            if len(tensor.shape) == 2:
                rule["rearrange"] = {"pattern": "g e -> (g e)", "sizes": {"g": 1}}
            yield Piece(target, rule, frozenset({""}), tensor.layers, "", tensor.shape)

    def _activation(self) -> Iterator[Piece]:
        tensors = self.roles.get("mlp.act", ())
        if tensors:
            module = tensors[0].name.rpartition(".")[0]
            leaves = frozenset(tensor.name.rpartition(".")[2] for tensor in tensors)
            yield Piece("mlp.act", module, leaves, tensors[0].layers)

    def _transposed(self, weight: Tensor) -> bool:
        """Whether a matrix is stored [in, out]: all of a checkpoint's are, or none."""
        return self.conv1d and len(weight.shape) == 2

    def _input_first(self, tensor: Tensor) -> bool:
        shape = tensor.shape
        return len(shape) == 2 and shape[0] == self.hidden != shape[1] and not tensor.stacked


def _weight(tensors: Sequence[Tensor]) -> Tensor:
    """The weight among the tensors of a role."""
    return next((t for t in tensors if t.leaf == "weight"), tensors[0])


def _short(rule: dict[str, Any]) -> Any:
    """A rule without options is the name alone."""
    return rule["from"] if len(rule) == 1 else rule
