"""A compiled graph as a picture of its equations: what flows into what, as nodes and edges.

Sums of sums are one node, numbers stand on the node that uses them, and the forward context, which
is no stream, is left out.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from assembler.model.names import CONTEXT, LAYERS

NodeKind = Literal["stream", "block", "layers", "operator", "function"]
_SIGNS = {operator.add: "+", operator.sub: "−", operator.mul: "×", operator.truediv: "÷"}


@dataclass(frozen=True)
class Node:
    """A stream that comes in or goes out, a call of a block, or an operation."""

    name: str  # unique in the diagram
    kind: NodeKind
    label: str  # what is written on it; of a block, its name
    output: bool = False  # of a stream: it leaves here


@dataclass(frozen=True)
class Edge:
    """One value on its way; edges point from what makes it to what reads it."""

    source: str
    target: str


@dataclass(frozen=True)
class Diagram:
    """The equations of a layer, or of the model, in the order in which they are computed."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def read_diagram(
    graph: fx.Graph, outputs: Sequence[str], scalars: Mapping[str, Sequence[float]] | None = None
) -> Diagram:
    """Draw a graph.

    Args:
        graph: of a model or a layer, before any rewrite.
        outputs: names of what it returns.
        scalars: of a kind of layer, the numbers that differ from layer to layer, by attribute.
    """
    reader = _Reader(scalars or {})
    for node in graph.nodes:
        reader.read(node)
    (result,) = (node for node in graph.nodes if node.op == "output")
    values = result.args[0] if isinstance(result.args[0], tuple) else (result.args[0],)
    for name, value in zip(outputs, values, strict=True):
        reader.add(Node(f"{name} out", "stream", name, output=True), [value])
    return reader.diagram()


class _Reader:
    def __init__(self, scalars: Mapping[str, Sequence[float]]) -> None:
        self.scalars = scalars
        self.nodes: dict[str, Node] = {}
        self.inputs: dict[str, list[str]] = {}  # of each node, what it reads
        self.stands_for: dict[fx.Node, str] = {}  # the node that gives a value

    def add(self, node: Node, reads: Sequence[fx.Node], of: fx.Node | None = None) -> None:
        self.nodes[node.name] = node
        self.inputs[node.name] = [self.stands_for[value] for value in reads]
        if of is not None:
            self.stands_for[of] = node.name

    def read(self, node: fx.Node) -> None:
        reads = [arg for arg in node.all_input_nodes if arg in self.stands_for]
        if node.op == "placeholder" and node.target != CONTEXT:
            self.add(Node(node.name, "stream", node.target), [], node)
        elif node.op == "call_module":
            kind = "layers" if node.target == LAYERS else "block"
            self.add(Node(node.name, kind, node.target), reads, node)
        elif node.op == "call_function" and node.target is operator.getitem:
            self.stands_for[node] = self.stands_for[reads[0]]  # one of several streams
        elif node.op == "call_function":
            self._function(node, reads)

    def _function(self, node: fx.Node, reads: list[fx.Node]) -> None:
        numbers = [self._number(arg) for arg in node.args if arg not in reads]
        sign = _SIGNS.get(node.target)
        if node.target is operator.neg:
            self.add(Node(node.name, "function", "negate"), reads, node)
        elif sign is None:
            label = " ".join([node.target.__name__, *numbers])
            self.add(Node(node.name, "function", label), reads, node)
        elif numbers:
            first = node.args[0] not in reads
            swapped = first and sign in "−÷"
            label = f"{numbers[0]} {sign}" if swapped else f"{sign} {numbers[0]}"
            self.add(Node(node.name, "function", label), reads, node)
        elif sign == "+":
            self._sum(node, reads)
        else:
            # x * x reads one stream twice
            self.add(Node(node.name, "operator", sign), list(node.args), node)

    def _sum(self, node: fx.Node, reads: list[fx.Node]) -> None:
        """A sum takes over the terms of a sum that nothing else reads."""
        terms: list[str] = []
        for value in node.args:
            name = self.stands_for[value]
            inner = self.nodes[name]
            if inner.kind == "operator" and inner.label == "+" and len(value.users) == 1:
                terms += self.inputs.pop(name)
                del self.nodes[name]
            else:
                terms.append(name)
        self.nodes[node.name] = Node(node.name, "operator", "+")
        self.inputs[node.name] = terms
        self.stands_for[node] = node.name

    def _number(self, arg: object) -> str:
        if not isinstance(arg, fx.Node):
            return f"{arg:.4g}"
        values = self.scalars[str(arg.target)]
        low, high = min(values), max(values)
        return f"{low:.3g}" if low == high else f"{low:.3g}…{high:.3g}"

    def diagram(self) -> Diagram:
        edges = [Edge(source, name) for name in self.nodes for source in self.inputs[name]]
        return Diagram(tuple(self.nodes.values()), tuple(dict.fromkeys(edges)))
