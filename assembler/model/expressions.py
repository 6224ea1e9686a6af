"""Arithmetic written in YAML: a whitelisted subset of Python's expression syntax, never `eval`.

`${calc:'hidden_size // num_attention_heads'}`, the `kinds` rule of a layer and the scalar parts of
a wiring equation are expressions. Only the nodes below exist; attribute access, subscripts, calls
of anything but the listed functions, lambdas, comprehensions and f-strings are refused by name.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from assembler.errors import SpecError, did_you_mean

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "tanh": math.tanh,
    "min": min,
    "max": max,
    "abs": abs,
    "len": len,
    "int": int,
    "float": float,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
}

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARE: Mapping[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_MAX_POWER = 256  # an exponent above this is a mistake, or an attempt to hang the program


def parse(text: str, error: type[SpecError] = SpecError) -> ast.expr:
    """Parse `text` as one expression; `error` with the reason if it is not one."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        reason = err.msg if isinstance(err, SyntaxError) else "it nests too deeply"
        raise error(f"'{text}' is not an expression: {reason}") from None


def describe(node: ast.AST) -> str:
    """What a person would call this syntax, for messages that refuse it."""
    names = {
        ast.Attribute: "attribute access ('.')",
        ast.Subscript: "indexing ('[...]')",
        ast.Lambda: "lambda",
        ast.JoinedStr: "an f-string",
        ast.NamedExpr: "':='",
        ast.Await: "await",
        ast.Starred: "'*'",
    }
    return names.get(type(node), type(node).__name__)


def evaluate(node: ast.expr, names: Callable[[str], Any]) -> Any:
    """The value of a parsed expression; `names(x)` gives the value of the bare name x.

    Raises:
        SpecError: forbidden syntax, an unknown function, or arithmetic that cannot be done.
    """
    try:
        return _evaluate(node, names)
    except (ArithmeticError, TypeError, ValueError) as err:
        if isinstance(err, SpecError):
            raise
        raise SpecError(f"'{ast.unparse(node)}' cannot be computed: {err}") from None


def _evaluate(node: ast.expr, names: Callable[[str], Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.Name():
            return names(node.id)
        case ast.List() | ast.Tuple():
            return [_evaluate(item, names) for item in node.elts]
        case ast.BinOp() if type(node.op) in _BINARY:
            return _binary(node, _evaluate(node.left, names), _evaluate(node.right, names))
        case ast.UnaryOp() if type(node.op) in _UNARY:
            return _UNARY[type(node.op)](_evaluate(node.operand, names))
        case ast.BoolOp():
            return _boolean(node, names)
        case ast.Compare():
            return _compare(node, names)
        case ast.IfExp():
            chosen = node.body if _evaluate(node.test, names) else node.orelse
            return _evaluate(chosen, names)
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            if name not in FUNCTIONS:
                known = ", ".join(FUNCTIONS)
                hint = did_you_mean(name, FUNCTIONS)
                raise SpecError(f"unknown function '{name}'.{hint} Known: {known}")
            return FUNCTIONS[name](*[_evaluate(arg, names) for arg in node.args])
    raise SpecError(f"{describe(node)} is not allowed in an expression: '{ast.unparse(node)}'")


def _binary(node: ast.BinOp, left: Any, right: Any) -> Any:
    numbers = all(isinstance(x, int | float) for x in (left, right))
    joins = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, list)
    if not numbers and not joins:
        raise SpecError(f"'{ast.unparse(node)}': cannot compute with {left!r} and {right!r}")
    if isinstance(node.op, ast.Pow) and abs(right) > _MAX_POWER:
        raise SpecError(f"'{ast.unparse(node)}': an exponent of {right} is too large")
    if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**512:
        raise SpecError(f"'{ast.unparse(node)}': the numbers grow too large")
    return _BINARY[type(node.op)](left, right)


def _boolean(node: ast.BoolOp, names: Callable[[str], Any]) -> Any:
    stop_at = isinstance(node.op, ast.Or)
    for item in node.values:
        value = _evaluate(item, names)
        if bool(value) == stop_at:
            break
    return value


def _compare(node: ast.Compare, names: Callable[[str], Any]) -> bool:
    left = _evaluate(node.left, names)
    for op, item in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(item, names)
        if not _COMPARE[type(op)](left, right):
            return False
        left = right
    return True
