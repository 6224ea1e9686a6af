"""What a wiring equation is once it is parsed: a small tree over streams and numbers."""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class Scalar:
    """A subtree without streams: a number once the layer index is known."""

    tree: ast.expr
    per_layer: bool  # it mentions `i`


@dataclass(frozen=True)
class Stream:
    """The value of a stream at this point."""

    name: str


@dataclass(frozen=True)
class Binary:
    """`left op right` where at least one side is a tensor; op is "+", "-", "*" or "/"."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Negate:
    """`-x` of a tensor."""

    operand: Node


@dataclass(frozen=True)
class Call:
    """A call of a block, of a tensor function, or of the layer stack."""

    name: str
    args: tuple[Node, ...]
    kind: str  # "block", "function" or "layers"


Node = Scalar | Stream | Binary | Negate | Call


@dataclass(frozen=True)
class Equation:
    """One line: the streams it sets, and what to."""

    targets: tuple[str, ...]
    value: Node
    text: str
    where: str  # file:line


def streams_of(node: Node) -> set[str]:
    """The streams an expression reads."""
    match node:
        case Stream(name=name):
            return {name}
        case Binary(left=left, right=right):
            return streams_of(left) | streams_of(right)
        case Negate(operand=operand):
            return streams_of(operand)
        case Call(args=args):
            return set().union(*map(streams_of, args))
    return set()
