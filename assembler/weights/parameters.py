"""The model's side of a load: every parameter, with the layout its block declares for it.

The meta module is the truth: what exists here has to be filled, and nothing else can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from assembler.blocks.parallel import Part, ShardDim, TensorParallel
from assembler.weights.ops import Shape


@dataclass(frozen=True)
class ParameterSlot:
    """One parameter to be filled."""

    name: str  # layers.0.attn.qkv.weight
    module: str  # layers.0.attn.qkv
    leaf: str  # weight
    layout: ShardDim
    tied_to: str | None = None  # the parameter whose memory it shares; it needs no source then

    @property
    def parts(self) -> tuple[Part, ...]:
        """The segments of the fused (or split) dimension; one nameless part where there is none."""
        if self.layout.parts:
            return self.layout.parts
        rows = self.layout.shape[0] if self.layout.shape else 1
        return (Part("", rows, unit=rows),)

    @property
    def dim(self) -> int:
        """The dimension that the parts lie along."""
        return self.layout.dim or 0

    def local_shape(self, tp: TensorParallel) -> Shape:
        """The shape of the parameter on this rank."""
        shape = list(self.layout.shape)
        if self.layout.dim is not None:
            shape[self.dim] = sum(len(self.local_rows(part, tp)) for part in self.parts)
        return tuple(shape)

    def local_rows(self, part: Part, tp: TensorParallel) -> range:
        """The rows of `part` that this rank holds."""
        if self.layout.dim is None:
            return range(part.size)
        return part.rank_rows(tp.rank, tp.size)


@dataclass(frozen=True)
class ModelParameters:
    """Everything a plan needs to know about a model."""

    slots: Mapping[str, ParameterSlot]  # in the order of the modules
    modules: frozenset[str]  # every module path, with or without parameters
    tp: TensorParallel
    untied_heads: frozenset[str]  # output heads that the config says are not tied


def read_parameters(model: nn.Module) -> ModelParameters:
    """List the parameters of an assembled model (usually on meta).

    A module whose attribute `tied` is true borrows the `weight` of the one module with the role
    "embedding"; a parameter object that appears twice is filled once, under its first name.
    """
    slots: dict[str, ParameterSlot] = {}
    first_names: dict[int, str] = {}
    tied: list[str] = []
    modules = dict(model.named_modules())
    tp = getattr(model, "tp", TensorParallel())
    for path, module in modules.items():
        if getattr(module, "tied", None) is True:
            tied.append(path)
        owned = {leaf: p for leaf, p in module._parameters.items() if p is not None}
        if not owned:
            continue
        layouts = module.shard_dims()
        for leaf, parameter in owned.items():
            if path in tied and leaf == "weight":
                continue
            name = f"{path}.{leaf}" if path else leaf
            assert leaf in layouts, f"{type(module).__name__}.shard_dims() leaves out '{leaf}'"
            first = first_names.setdefault(id(parameter), name)
            other = None if first == name else first
            slot = ParameterSlot(name, path, leaf, layouts[leaf], other)
            assert tuple(parameter.shape) == slot.local_shape(tp), f"{name}: {layouts[leaf]}"
            slots[name] = slot
    for path in tied:
        embedding = _embedding(slots, modules)
        name = f"{path}.weight"
        slots[name] = ParameterSlot(name, path, "weight", embedding.layout, embedding.name)
    untied = {path for path, module in modules.items() if getattr(module, "tied", None) is False}
    return ModelParameters(slots, frozenset(modules), tp, frozenset(untied))


def _embedding(
    slots: Mapping[str, ParameterSlot], modules: Mapping[str, nn.Module]
) -> ParameterSlot:
    """The weight of the token embedding, which tied heads share."""
    found = [path for path, m in modules.items() if getattr(m, "role", None) == "embedding"]
    assert len(found) == 1, f"a tied head needs one embedding, the model has {found}"
    return slots[f"{found[0]}.weight"]
