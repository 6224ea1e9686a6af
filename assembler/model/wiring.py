"""Wiring equations: `x = x + attn(attn_norm(x))`, parsed into a small tree, checked by name.

The grammar is one assignment a line. The right side has streams (`x`), numbers, the layer index
`i`, `hidden_size`, `vocab_size`, `num_layers`, `+ - * /` (and `**` `//` `%` between numbers), calls
of the blocks named beside it and of a few functions. A subtree without streams is a number: it is
computed when the model is built (`sqrt(1 - 1/(2*(i+1)))` costs nothing at run time).
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assembler.blocks.functions import FUNCTIONS
from assembler.errors import WiringError, did_you_mean
from assembler.model import expressions

# Functions that take a stream, with the number of their arguments; the others take numbers only.
TENSOR_FUNCTIONS = {
    name: (function, len(inspect.signature(function).parameters))
    for name, function in FUNCTIONS.items()
    if function not in (min, max)
}
_TENSOR_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


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


@dataclass(frozen=True)
class Scope:
    """The names equations of one place may use."""

    inputs: tuple[str, ...]  # streams that exist before the first line
    outputs: tuple[str, ...]  # streams that must exist after the last
    blocks: Mapping[str, object]  # block names; their values do not matter here
    numbers: tuple[str, ...]  # names of scalars
    layers: bool = False  # `layers(...)` may be called


def parse_wiring(lines: Sequence[str], scope: Scope, where: Sequence[str]) -> tuple[Equation, ...]:
    """Parse and check the equations of one layer kind or of the model.

    Args:
        lines: the equations, in order.
        scope: the names they may use.
        where: "file:line" of each equation.

    Raises:
        WiringError: syntax that is not allowed, an unknown name, a block that is declared and never
            called, an output stream that is never set. All findings in one error.
    """
    parser = _LineParser(scope)
    equations, findings = [], []
    for line, place in zip(lines, where, strict=True):
        try:
            equations.append(parser.equation(line))
        except WiringError as error:
            findings.append(f"{place}: {error} (in '{line}')")
    place = where[0].rpartition(":")[0] if where else ""
    if not findings:
        for name in scope.blocks:
            if name not in parser.called:
                findings.append(f"{place}: block '{name}' is declared but no equation calls it")
        for name in scope.outputs:
            if name not in parser.streams:
                findings.append(f"{place}: no equation sets '{name}'")
    if findings:
        raise WiringError("\n".join(findings))
    return tuple(equations)


class _LineParser:
    """Turns lines into equations, keeping track of the streams that exist so far."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.streams = set(scope.inputs)
        self.called: set[str] = set()

    def equation(self, line: str) -> Equation:
        try:
            body = ast.parse(line.strip()).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
            reason = err.msg if isinstance(err, SyntaxError) else "it nests too deeply"
            raise WiringError(f"not an equation: {reason}") from None
        if len(body) != 1 or not isinstance(body[0], ast.Assign) or len(body[0].targets) != 1:
            raise WiringError("an equation is one assignment, such as x = x + mlp(norm(x))")
        targets = self._targets(body[0].targets[0])
        value = self._node(body[0].value)
        if isinstance(value, Scalar):
            raise WiringError("the right side uses no stream, so it would be the same for any text")
        if len(targets) > 1 and not (isinstance(value, Call) and value.kind == "layers"):
            raise WiringError("only layers(...) gives several streams")
        self.streams.update(targets)
        return Equation(targets, value, line.strip())

    def _targets(self, node: ast.expr) -> tuple[str, ...]:
        items = node.elts if isinstance(node, ast.Tuple) else [node]
        names = []
        for item in items:
            if not isinstance(item, ast.Name):
                raise WiringError(f"{expressions.describe(item)} cannot be assigned to")
            taken = {
                "a block": item.id in self.scope.blocks,
                "a function": item.id in TENSOR_FUNCTIONS or item.id == "layers",
                "a number": item.id in self.scope.numbers,
            }
            for what, yes in taken.items():
                if yes:
                    raise WiringError(f"'{item.id}' is {what}, so a stream cannot be called that")
            if item.id.startswith("__"):
                raise WiringError(f"'{item.id}': a stream's name does not begin with '__'")
            names.append(item.id)
        return tuple(names)

    def _node(self, node: ast.expr) -> Node:
        match node:
            case ast.Constant(value=bool() | str() | bytes() | None):
                raise WiringError(f"{ast.unparse(node)} is no number")
            case ast.Constant(value=int() | float()):
                return Scalar(node, per_layer=False)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self._node(operand)
                if isinstance(inner, Scalar):
                    return Scalar(node, inner.per_layer)
                return Negate(inner)
            case ast.BinOp():
                return self._binary(node)
            case ast.Call():
                return self._call(node)
        raise WiringError(f"{expressions.describe(node)} is not allowed in an equation")

    def _name(self, node: ast.Name, name: str) -> Node:
        if name in self.streams:
            return Stream(name)
        if name in self.scope.numbers:
            return Scalar(node, per_layer=name == "i")
        if name in self.scope.blocks:
            raise WiringError(f"'{name}' is a block: call it, {name}(x)")
        known = [*self.streams, *self.scope.numbers]
        raise WiringError(f"unknown stream '{name}'.{did_you_mean(name, known)}")

    def _binary(self, node: ast.BinOp) -> Node:
        left, right = self._node(node.left), self._node(node.right)
        if isinstance(left, Scalar) and isinstance(right, Scalar):
            return Scalar(node, left.per_layer or right.per_layer)
        if not isinstance(node.op, _TENSOR_OPERATORS):
            raise WiringError(f"'{ast.unparse(node)}': streams take + - * / only")
        op = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
        return Binary(op, left, right)

    def _call(self, node: ast.Call) -> Node:
        if not isinstance(node.func, ast.Name):
            raise WiringError(f"{expressions.describe(node.func)} is not allowed in an equation")
        name = node.func.id
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise WiringError(f"{name}(...) takes plain arguments; options belong to the block")
        if name == "softcap" and len(node.args) == 2 and _is_none(node.args[1]):
            return self._node(node.args[0])  # a config's null: no cap
        args = tuple(self._node(arg) for arg in node.args)
        if name in self.scope.blocks:
            self.called.add(name)
            if not args or any(isinstance(arg, Scalar) for arg in args):
                raise WiringError(f"{name}(...) is a block: its arguments are streams")
            return Call(name, args, "block")
        if name == "layers" and self.scope.layers:
            return Call(name, args, "layers")
        if name in TENSOR_FUNCTIONS or name in expressions.FUNCTIONS:
            return self._function(node, name, args)
        known = [*self.scope.blocks, *TENSOR_FUNCTIONS, *(["layers"] if self.scope.layers else [])]
        raise WiringError(
            f"unknown block or function '{name}'.{did_you_mean(name, known)} "
            f"Known here: {', '.join(known)}"
        )

    def _function(self, node: ast.Call, name: str, args: tuple[Node, ...]) -> Node:
        scalars = [arg for arg in args if isinstance(arg, Scalar)]
        if len(scalars) == len(args) and name in expressions.FUNCTIONS:
            return Scalar(node, any(arg.per_layer for arg in scalars))
        if name not in TENSOR_FUNCTIONS:
            raise WiringError(f"{name}(...) takes numbers, not streams")
        wanted = TENSOR_FUNCTIONS[name][1]
        if len(args) != wanted:
            raise WiringError(f"{name}(...) takes {wanted} arguments, not {len(args)}")
        return Call(name, args, "function")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
