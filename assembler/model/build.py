"""`ModelSpec` -> an ordinary `nn.Module` on the meta device.

The result is a `torch.fx.GraphModule` whose layers are GraphModules too: `print(model.code)` and
`print(model.layers[0].code)` show the compiled equations, and state_dict, hooks, torch.compile and
training work as on any module. No memory is allocated for weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import fx, nn

from assembler.blocks.context import BuildContext
from assembler.blocks.parallel import TensorParallel
from assembler.errors import SpecError, WiringError
from assembler.kernels.fused import fused_choice
from assembler.model.graphs import WiredGraph, num_streams, wire
from assembler.model.layer_stack import LayerModule, LayerStack
from assembler.model.names import LAYER_INDEX, LAYERS, LOGITS, TOKENS
from assembler.model.places import block_places, located_wiring
from assembler.model.registry import BlockRegistry, BlockSpec, default_registry
from assembler.model.rewrites import ModelGraphs, apply_rewrites
from assembler.model.scope import Callee, Scope
from assembler.model.spec import ModelSpec
from assembler.model.wiring import parse_wiring


def build_model(
    spec: ModelSpec,
    tp: TensorParallel | None = None,
    *,
    rewrites: str | Iterable[str] = "all",
    registry: BlockRegistry | None = None,
) -> fx.GraphModule:
    """Assemble the model a spec describes, on the meta device.

    The module maps `(input_ids, ctx)` to logits: [B, L] -> [B, L, vocab] with a dense
    `ForwardContext`, [T] -> [rows, vocab] with a paged one. It has the attributes `spec`, `tp` and
    `layers`; every block that caches keys and values has its `cache_index`.

    Args:
        spec: what to build.
        tp: the tensor-parallel rank to build for (default: the whole model).
        rewrites: "all", "none" or names from `assembler.model.rewrites.REWRITES`.

    Raises:
        WiringError: an equation is wrong.
        SpecError: fields that do not fit together, or a tensor-parallel size that cannot work.
        OptionError: the environment asks for fused kernels in a way that there is not.
    """
    fused_choice()  # wrong, it is said here, before anything is loaded
    registry = registry or default_registry()
    graphs = _graphs(spec, registry)
    apply_rewrites(graphs, rewrites)
    builder = _Builder(spec, tp or TensorParallel(), registry)
    with torch.device("meta"):
        model = builder.model(graphs)
    _tie_head(model, spec)
    for index, block in enumerate(m for m in model.layers.modules() if hasattr(m, "cache_spec")):
        block.cache_index = index
    return model


def _numbers(spec: ModelSpec) -> dict[str, float]:
    return {
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "num_layers": spec.num_layers,
    }


def _graphs(spec: ModelSpec, registry: BlockRegistry) -> ModelGraphs:
    """Parse all equations (every error at once) and translate them."""
    numbers = _numbers(spec)
    errors: list[str] = []

    def graph(name: str | None, blocks: Mapping[str, BlockSpec], scope: Scope) -> WiredGraph | None:
        classes = {block: registry.block_class(entry.block) for block, entry in blocks.items()}
        try:
            equations = parse_wiring(*located_wiring(spec, name), scope)
            return wire(equations, scope.inputs, scope.outputs, classes, numbers)
        except WiringError as error:
            errors.append(str(error))
            return None

    kinds = {
        name: graph(
            name,
            kind.blocks,
            Scope(
                inputs=spec.streams,
                outputs=spec.streams,
                blocks=_callees(spec, name, registry),
                numbers=(*numbers, LAYER_INDEX),
            ),
        )
        for name, kind in spec.kinds.items()
    }
    top = Scope(
        inputs=(TOKENS,),
        outputs=(LOGITS,),
        blocks=_callees(spec, None, registry),
        numbers=tuple(numbers),
        layers=len(spec.streams),
    )
    model = graph(None, spec.blocks, top)
    if errors:
        raise WiringError("\n".join(dict.fromkeys("\n".join(errors).splitlines())))
    return ModelGraphs(model, kinds, {}, spec.layer_kinds[0])


def _callees(spec: ModelSpec, kind: str | None, registry: BlockRegistry) -> dict[str, Callee]:
    """The blocks that the equations of a kind of layer (None: of the model) may call."""
    entries = spec.blocks if kind is None else spec.kinds[kind].blocks
    callees = {}
    for name, entry in entries.items():
        cls = registry.block_class(entry.block)
        callees[name] = Callee(
            takes=num_streams(cls),
            caches=hasattr(cls, "cache_spec"),
            where=block_places(spec, kind, name)[0],
        )
    return callees


class _Builder:
    """Makes the modules the graphs call."""

    def __init__(self, spec: ModelSpec, tp: TensorParallel, registry: BlockRegistry) -> None:
        self.spec = spec
        self.registry = registry
        self.numbers = _numbers(spec)
        self.context = BuildContext(
            hidden_size=spec.hidden_size,
            vocab_size=spec.vocab_size,
            max_length=spec.max_length,
            tp=tp,
            make=registry.make,
        )

    def model(self, graphs: ModelGraphs) -> fx.GraphModule:
        root = nn.Module()
        for name, entry in self.spec.blocks.items():
            root.add_module(name, self.context.child(entry, name))
        root.add_module(LAYERS, self._layers(graphs))
        model = fx.GraphModule(root, graphs.model.graph, class_name="Model")
        model.spec = self.spec
        model.tp = self.context.tp
        # fx copies what its graph calls and what is listed here.
        model.meta["_user_preserved_attributes"] = {"spec": model.spec, "tp": model.tp}
        return model

    def _layers(self, graphs: ModelGraphs) -> LayerStack:
        layers = LayerStack()
        twins: dict[int, LayerModule] = {}
        for index, kind in enumerate(self.spec.layer_kinds):
            wired = graphs.first.get(kind, graphs.kinds[kind]) if index == 0 else graphs.kinds[kind]
            layer = self._layer(wired, kind, index, twins.get(id(wired)))
            twins.setdefault(id(wired), layer)
            layers.append(layer)
        return layers

    def _layer(
        self, wired: WiredGraph, kind: str, index: int, twin: LayerModule | None
    ) -> LayerModule:
        root = nn.Module()
        for name, entry in self.spec.kinds[kind].blocks.items():
            root.add_module(name, self.context.child(entry, f"layers.{index}.{name}"))
        for attribute, value in wired.scalar_values(self.numbers, index).items():
            setattr(root, attribute, value)
        return LayerModule(root, wired.graph, f"Layer_{kind}", twin)


def _tie_head(model: fx.GraphModule, spec: ModelSpec) -> None:
    """Let every tied head share the weight of the token embedding."""
    by_role = {name: getattr(model, name) for name in spec.blocks}
    heads = [block for block in by_role.values() if getattr(block, "tied", False)]
    if not heads:
        return
    embeddings = [block for block in by_role.values() if block.role == "embedding"]
    if len(embeddings) != 1:
        raise SpecError(
            f"{spec.name}: a tied head needs exactly one token embedding, not {len(embeddings)}"
        )
    for head in heads:
        head.tie(embeddings[0])
