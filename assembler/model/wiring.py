"""Wiring equations: `x = x + attn(attn_norm(x))`, parsed into a small tree, checked by name.

The grammar is one assignment a line. The right side has streams (`x`), numbers, the layer index
`i`, `hidden_size`, `vocab_size`, `num_layers`, `+ - * /` (and `**` `//` `%` between numbers), calls
of the blocks named beside it and of a few functions. A subtree without streams is a number: it is
computed when the model is built (`sqrt(1 - 1/(2*(i+1)))` costs nothing at run time).
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence

from assembler.blocks.functions import FUNCTIONS
from assembler.errors import SpecError, WiringError, did_you_mean
from assembler.model import expressions
from assembler.model.equations import (
    Binary,
    Call,
    Equation,
    Negate,
    Node,
    Scalar,
    Stream,
)
from assembler.model.names import LAYERS, stream_name_problem
from assembler.model.scope import Scope, left_undone, used_in_vain

# Functions that take a stream, with the number of their arguments; the others take numbers only.
TENSOR_FUNCTIONS = {
    name: (function, len(inspect.signature(function).parameters))
    for name, function in FUNCTIONS.items()
    if function not in (min, max)
}
_TENSOR_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


def parse_wiring(lines: Sequence[str], where: Sequence[str], scope: Scope) -> tuple[Equation, ...]:
    """Parse and check the equations of one layer kind or of the model.

    Args:
        lines: the equations, in order.
        where: "file:line" of each equation.
        scope: the names they may use.

    Raises:
        WiringError: syntax that is not allowed, an unknown name, a block that is declared and never
            called, a stream that is set and never used. All findings in one error.
    """
    parser = _LineParser(scope)
    equations, findings = [], []
    for line, place in zip(lines, where, strict=True):
        try:
            equations.append(parser.equation(line, place))
        except WiringError as error:
            findings.append(f"{place}: {error} (in '{expressions.shortened(line)}')")
    if not findings:
        findings = [
            *used_in_vain(equations, scope, parser.called),
            *left_undone(scope, parser.called, parser.streams, where),
        ]
    if findings:
        raise WiringError("\n".join(findings))
    return tuple(equations)


class _LineParser:
    """Turns lines into equations, keeping track of the streams that exist so far."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.streams = set(scope.inputs)
        self.called: set[str] = set()

    def equation(self, line: str, where: str) -> Equation:
        try:
            body = expressions.parse_python(line, "exec").body
        except SpecError as error:
            raise WiringError(f"not an equation: {error}") from None
        if len(body) != 1 or not isinstance(body[0], ast.Assign) or len(body[0].targets) != 1:
            raise WiringError("an equation is one assignment, such as x = x + mlp(norm(x))")
        targets = self._targets(body[0].targets[0])
        try:
            value = self._node(body[0].value)
        finally:  # later lines may read what this one would have set
            self.streams.update(targets)
        if isinstance(value, Scalar):
            raise WiringError("the right side uses no stream, so it would be the same for any text")
        gives = self.scope.layers if isinstance(value, Call) and value.kind == "layers" else 1
        if len(targets) != gives:
            raise WiringError(f"the right side gives {_streams(gives)}, not {len(targets)}")
        return Equation(targets, value, line.strip(), where)

    def _targets(self, node: ast.expr) -> tuple[str, ...]:
        items = node.elts if isinstance(node, ast.Tuple) else [node]
        names = []
        for item in items:
            if not isinstance(item, ast.Name):
                raise WiringError(f"{expressions.describe(item)} cannot be assigned to")
            if item.id in self.scope.blocks:
                raise WiringError(f"'{item.id}' is a block, so a stream cannot be called that")
            if item.id not in self.scope.inputs and (problem := stream_name_problem(item.id)):
                raise WiringError(problem)
            names.append(item.id)
        if len(set(names)) < len(names):
            raise WiringError("one stream is set twice")
        return tuple(names)

    def _node(self, node: ast.expr) -> Node:
        match node:
            case ast.Constant(value=bool()):
                raise WiringError(f"{node.value} is no number")
            case ast.Constant(value=int() | float()):
                return Scalar(node, per_layer=False)
            case ast.Constant():
                raise WiringError(f"{expressions.shortened(repr(node.value))} is no number")
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
        known = [*sorted(self.streams), *self.scope.numbers]
        raise WiringError(
            f"unknown stream '{name}'.{did_you_mean(name, known)} Known here: {', '.join(known)}"
        )

    def _binary(self, node: ast.BinOp) -> Node:
        left, right = self._node(node.left), self._node(node.right)
        if isinstance(left, Scalar) and isinstance(right, Scalar):
            return Scalar(node, left.per_layer or right.per_layer)
        if not isinstance(node.op, _TENSOR_OPERATORS):
            source = expressions.shortened(ast.unparse(node))
            raise WiringError(f"'{source}': streams take + - * / only")
        op = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}[type(node.op)]
        return Binary(op, left, right)

    def _call(self, node: ast.Call) -> Node:
        if not isinstance(node.func, ast.Name):
            raise WiringError(f"{expressions.describe(node.func)} is not allowed in an equation")
        name = node.func.id
        if node.keywords or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise WiringError(f"{name}(...) takes plain arguments; options belong to the block")
        if name in self.scope.blocks:
            block = self.scope.blocks[name]
            return self._module_call(node, "block", block.takes, once=block.caches)
        if name == LAYERS and self.scope.layers:
            return self._module_call(node, "layers", self.scope.layers, once=True)
        if name == "softcap" and len(node.args) == 2 and _is_none(node.args[1]):
            return self._node(node.args[0])  # a config's null: no cap
        if name in TENSOR_FUNCTIONS or name in expressions.FUNCTIONS:
            return self._function(node, name, tuple(self._node(arg) for arg in node.args))
        known = [*self.scope.blocks, *TENSOR_FUNCTIONS, *([LAYERS] if self.scope.layers else [])]
        raise WiringError(
            f"unknown block or function '{name}'.{did_you_mean(name, known)} "
            f"Known here: {', '.join(known)}"
        )

    def _module_call(self, node: ast.Call, kind: str, takes: int, once: bool) -> Call:
        """A call of a block or of the layers, with as many streams as they take."""
        name = node.func.id  # type: ignore[attr-defined]
        args = tuple(self._node(arg) for arg in node.args)
        if any(isinstance(arg, Scalar) for arg in args):
            raise WiringError(f"the arguments of {name}(...) are streams, not numbers")
        if len(args) != takes:
            raise WiringError(f"{name}(...) takes {_streams(takes)}, not {len(args)}")
        if once and name in self.called:
            raise WiringError(
                f"{name}(...) is called twice, but caches keys and values of one call"
            )
        self.called.add(name)
        return Call(name, args, kind)

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


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
