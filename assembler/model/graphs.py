"""Equations -> `torch.fx` graphs: one for each kind of layer and one for the model.

A graph calls blocks by name and holds no weights, so all layers of a kind share one. Numbers that
depend on the layer index become attributes (`scale_0`, ...) that each layer sets for itself.
"""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from assembler.errors import SpecError, WiringError
from assembler.model import expressions
from assembler.model.equations import Binary, Call, Equation, Negate, Node, Scalar, Stream
from assembler.model.names import CONTEXT, LAYER_INDEX
from assembler.model.wiring import TENSOR_FUNCTIONS

_OPERATORS: Mapping[str, Callable] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


@dataclass(frozen=True)
class LayerScalar:
    """A number that differs from layer to layer."""

    tree: ast.expr
    where: str  # file:line of the equation


@dataclass
class WiredGraph:
    """A graph with what is needed to make modules of it."""

    graph: fx.Graph
    streams: tuple[str, ...]  # its inputs before ctx and, in a layer, its outputs
    blocks: Mapping[str, type[nn.Module]]  # class of each block it calls by name
    scalars: dict[str, LayerScalar] = field(default_factory=dict)  # by attribute of the layer

    def scalar_values(self, numbers: Mapping[str, float], index: int) -> dict[str, float]:
        """The attributes of layer `index`."""
        names = {**numbers, LAYER_INDEX: index}
        return {
            attribute: _number(scalar.tree, names, scalar.where, f" in layer {index}")
            for attribute, scalar in self.scalars.items()
        }

    def copy(self) -> WiredGraph:
        """An independent copy of the graph, to rewrite differently."""
        graph = fx.Graph()
        result = graph.graph_copy(self.graph, {})
        graph.output(result)
        return WiredGraph(graph, self.streams, self.blocks, dict(self.scalars))


def takes_context(block: type[nn.Module]) -> bool:
    """True if the block's forward has the ForwardContext as a parameter."""
    return CONTEXT in inspect.signature(block.forward).parameters


def num_streams(block: type[nn.Module]) -> int:
    """How many streams the block's forward must be given."""
    _self, *parameters = inspect.signature(block.forward).parameters.values()
    return sum(p.default is p.empty and p.name != CONTEXT for p in parameters)


def wire(
    equations: Sequence[Equation],
    inputs: Sequence[str],
    outputs: Sequence[str],
    blocks: Mapping[str, type[nn.Module]],
    numbers: Mapping[str, float],
) -> WiredGraph:
    """Translate equations into a graph `(*inputs, ctx) -> outputs`."""
    wired = WiredGraph(fx.Graph(), tuple(inputs), blocks)
    writer = _GraphWriter(wired, numbers)
    for name in inputs:
        writer.streams[name] = wired.graph.placeholder(name)
    writer.context = wired.graph.placeholder(CONTEXT)
    for equation in equations:
        writer.write(equation)
    results = tuple(writer.streams[name] for name in outputs)
    wired.graph.output(results[0] if len(results) == 1 else results)
    return wired


class _GraphWriter:
    def __init__(self, wired: WiredGraph, numbers: Mapping[str, float]) -> None:
        self.wired = wired
        self.numbers = numbers
        self.streams: dict[str, fx.Node] = {}
        self.context: fx.Node
        self.where = ""

    def write(self, equation: Equation) -> None:
        self.where = equation.where
        value = self._node(equation.value, equation.targets[0])
        if len(equation.targets) == 1:
            self.streams[equation.targets[0]] = value
            return
        for position, name in enumerate(equation.targets):
            item = self._create("call_function", operator.getitem, (value, position), name)
            self.streams[name] = item

    def _create(self, op: str, target: object, args: tuple, name: str | None = None) -> fx.Node:
        node = self.wired.graph.create_node(op, target, args, name=name)  # type: ignore[arg-type]
        node.meta["where"] = self.where
        return node

    def _node(self, node: Node, name: str | None = None) -> fx.Node | float:
        match node:
            case Stream():
                return self.streams[node.name]
            case Scalar():
                return self._scalar(node)
            case Negate():
                return self._create("call_function", operator.neg, (self._node(node.operand),))
            case Binary():
                args = (self._node(node.left), self._node(node.right))
                name = name or ("scaled" if node.op in "*/" else "sum")
                return self._create("call_function", _OPERATORS[node.op], args, f"{name}_1")
            case Call(kind="function"):
                function = TENSOR_FUNCTIONS[node.name][0]
                return self._create("call_function", function, tuple(map(self._node, node.args)))
            case Call():
                args = tuple(map(self._node, node.args))
                if node.kind == "layers" or takes_context(self.wired.blocks[node.name]):
                    args = (*args, self.context)
                return self._create("call_module", node.name, args)
        raise AssertionError(node)

    def _scalar(self, node: Scalar) -> fx.Node | float:
        if not node.per_layer:
            return _number(node.tree, self.numbers, self.where)
        same = ast.dump(node.tree)
        for attribute, scalar in self.wired.scalars.items():
            if ast.dump(scalar.tree) == same:
                return self._create("get_attr", attribute, ())
        attribute = f"scale_{len(self.wired.scalars)}"
        self.wired.scalars[attribute] = LayerScalar(node.tree, self.where)
        return self._create("get_attr", attribute, ())


def _number(tree: ast.expr, names: Mapping[str, float], where: str, layer: str = "") -> float:
    """The value of a scalar; its error says where it stands."""
    try:
        return expressions.evaluate(tree, names.__getitem__)
    except SpecError as error:
        raise WiringError(f"{where}: {error}{layer}") from None
