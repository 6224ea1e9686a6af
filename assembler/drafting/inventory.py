"""What a checkpoint holds, folded: one entry for the tensors of all layers that share a name.

Only headers are looked at. `model.layers.0.mlp.up_proj.weight` to layer 31 become one `Tensor` with
the name `mlp.up_proj.weight` below the stem `model.layers`; the experts of a layer become one more
fold. Parts of a checkpoint that are not the language model (image encoders, layers for multi-token
prediction) are set aside with the reason.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from assembler.weights.tensor_info import TensorInfo

_OTHER_MODALITIES = re.compile(
    r"(^|[._])(vision|visual|image|audio|video|multi_modal|mm_projector|patch_embed)"
)
_COMPUTED = re.compile(
    r"(inv_freq|(^|\.)(attn|attention)\.(masked_)?bias|embed_positions\.weights)$"
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Tensor:
    """A tensor, or the tensors of one name in several layers (and of several experts)."""

    name: str  # below the layer's stem; "{e}" stands for a second index
    shape: tuple[int, ...]
    layers: tuple[int, ...] = ()  # () for what stands outside of the layers
    stacked: int = 0  # how many the "{e}" stands for

    @property
    def module(self) -> str:
        """The name without its leaf; a name without a leaf such as `sinks` is its own module."""
        return self.name.rpartition(".")[0] if self.leaf else self.name

    @property
    def leaf(self) -> str:
        """`weight` or `bias`; "" for a tensor that is called neither."""
        last = self.name.rpartition(".")[2]
        return last if last in ("weight", "bias") else ""


@dataclass(frozen=True)
class Inventory:
    """The tensors of the language model, and those set aside."""

    stem: str  # what the names of all layers begin with, e.g. "model.layers"
    count: int  # layers
    layer: tuple[Tensor, ...]
    outside: tuple[Tensor, ...]
    aside: Mapping[str, str] = field(default_factory=dict)  # pattern -> why


def take_inventory(tensors: Mapping[str, TensorInfo], num_layers: int | None) -> Inventory:
    """Fold the tensors of a checkpoint.

    Args:
        tensors: by name, from the headers.
        num_layers: what config.json says; layers beyond it are for multi-token prediction.
    """
    aside: dict[str, str] = {}
    names = [name for name in sorted(tensors) if not _set_aside(name, aside)]
    stem = _stem(names, num_layers)
    inside: dict[tuple[str, tuple[int, ...]], dict[int, set[int]]] = {}
    inside = defaultdict(lambda: defaultdict(set))
    outside = []
    for name in names:
        found = re.fullmatch(rf"{re.escape(stem)}\.(\d+)\.(.+)", name) if stem else None
        shape = tuple(tensors[name].shape)
        if found is None:
            outside.append(Tensor(name, shape))
            continue
        layer = int(found[1])
        if num_layers is not None and layer >= num_layers:
            pattern = f"*{stem}.{layer}.*"
            aside[pattern] = "a layer beyond the number that config.json gives"
            continue
        inner, numbers = _NUMBER.subn("{e}", found[2], count=1)
        index = int(_NUMBER.search(found[2])[0]) if numbers else 0
        inside[inner, shape][layer].add(index)
    folded = [t for (name, shape), found in inside.items() for t in _folded(name, shape, found)]
    folded.sort(key=lambda tensor: tensor.name)
    count = 1 + max((max(tensor.layers) for tensor in folded), default=-1)
    return Inventory(stem, count, tuple(folded), tuple(outside), aside)


def _folded(name: str, shape: tuple[int, ...], layers: Mapping[int, set[int]]) -> Iterator[Tensor]:
    """The entry of one name; a second number that does not count (`ffn.0`, `ffn.2`) stays."""
    indices = set().union(*layers.values())
    if "{e}" not in name:
        yield Tensor(name, shape, tuple(sorted(layers)))
    elif len(indices) > 1 and indices == set(range(len(indices))):
        yield Tensor(name, shape, tuple(sorted(layers)), len(indices))
    else:
        for index in sorted(indices):
            having = tuple(sorted(layer for layer, found in layers.items() if index in found))
            yield Tensor(name.replace("{e}", str(index)), shape, having)


def _set_aside(name: str, aside: dict[str, str]) -> bool:
    """Whether a tensor is no part of the language model; notes the pattern and the reason."""
    if found := _OTHER_MODALITIES.search(name):
        aside[f"*{found[2]}*"] = "it is not part of the text model"
        return True
    if name.startswith(("mtp.", "model.mtp")):
        aside["*mtp*"] = "the layers for multi-token prediction are not part of the model"
        return True
    if found := _COMPUTED.search(name):
        aside[f"*.{name.split('.')[-2]}.{name.split('.')[-1]}"] = "computed, not learned"
        return True
    return False


def _stem(names: Iterable[str], num_layers: int | None) -> str:
    """The beginning of the names of most tensors: with as many indices as there are layers."""
    counts: Counter[str] = Counter()
    indices: dict[str, set[int]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        place = next((n for n, part in enumerate(parts) if part.isdecimal()), None)
        if place:
            stem = ".".join(parts[:place])
            counts[stem] += 1
            indices[stem].add(int(parts[place]))
    fitting = [stem for stem in counts if num_layers is None or len(indices[stem]) >= num_layers]
    return max(fitting or counts, key=lambda stem: (counts[stem], stem), default="")
