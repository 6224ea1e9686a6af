"""Arithmetic written in YAML: a whitelisted subset of Python's expression syntax, never `eval`.

`${calc:'hidden_size // num_attention_heads'}`, the `kinds` rule of a layer and the scalar parts of
a wiring equation are expressions. Only the nodes below exist; attribute access, slices, calls of
anything but the listed functions, lambdas, comprehensions and f-strings are refused by name.
"""

from __future__ import annotations

import ast
import keyword
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from assembler.blocks.functions import sigmoid
from assembler.errors import SpecError, did_you_mean

_KEYWORDS = ("and", "else", "if", "in", "is", "not", "or")  # those that expressions have

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "tanh": math.tanh,
    "sigmoid": sigmoid,
    "min": min,
    "max": max,
    "abs": abs,
    "len": len,
    "int": int,
    "float": float,
    "round": lambda x: round(x),  # without digits: a huge negative number of them never returns
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
# Beyond these an expression is a mistake, or an attempt to hang the program.
_MAX_POWER = 256
_MAX_INTEGER = 2**512
_MAX_DEPTH = 100
_MAX_LENGTH = 20_000


class NoSuchItem(SpecError):
    """A list was asked for an item it does not have."""


def parse(text: str) -> ast.expr:
    """Parse `text` as one expression; `SpecError` with the reason if it is not one."""
    try:
        return parse_python(text, "eval").body
    except SpecError as error:
        raise SpecError(f"'{shortened(text)}' is not an expression: {error}") from None


def parse_python(text: str, mode: str) -> Any:
    """`ast.parse`, with a `SpecError` that gives the reason for whatever it does not take."""
    if len(text) > _MAX_LENGTH:
        raise SpecError(f"it is longer than {_MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "1if x": a warning today, an error tomorrow
            tree = ast.parse(text.strip(), mode=mode)
    except SyntaxError as error:
        raise SpecError(error.msg + _keyword_hint(text)) from None
    except ValueError as error:
        raise SpecError(str(error)) from None
    except (RecursionError, MemoryError):
        raise SpecError("it nests too deeply") from None
    level, depth = [tree], 0
    while level:  # level by level: the walks that follow are recursive
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    if depth > _MAX_DEPTH:
        raise SpecError("it nests too deeply")
    return tree


def _keyword_hint(text: str) -> str:
    """What to do about a bare word that Python keeps for itself, e.g. a kind called "global"."""
    words = re.findall(r"(?<![\w'\"])[a-z]+(?![\w'\"])", text)
    taken = [word for word in words if keyword.iskeyword(word) and word not in _KEYWORDS]
    if not taken:
        return ""
    return f": '{taken[0]}' is a word of the expression grammar; put it in quotes to mean a name"


def shortened(text: str) -> str:
    """`text` as a message quotes it: cut where it is long."""
    return text if len(text) <= 120 else f"{text[:117]}..."


def describe(node: ast.AST) -> str:
    """What a person would call this syntax, for messages that refuse it."""
    names = {
        ast.BinOp: "this operator",
        ast.BoolOp: "and / or",
        ast.Call: "a call of something else than a name",
        ast.Compare: "a comparison",
        ast.Dict: "a mapping ('{...}')",
        ast.DictComp: "a comprehension",
        ast.GeneratorExp: "a comprehension",
        ast.IfExp: "if ... else",
        ast.List: "a list ('[...]')",
        ast.ListComp: "a comprehension",
        ast.Set: "a set ('{...}')",
        ast.SetComp: "a comprehension",
        ast.Tuple: "a tuple",
        ast.UnaryOp: "this operator",
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
        raise SpecError(f"'{_source(node)}' cannot be computed: {err}") from None


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
        case ast.Subscript() if not isinstance(node.slice, ast.Slice):
            return _item(node, _evaluate(node.value, names), _evaluate(node.slice, names))
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
        case ast.Call(func=ast.Name(id=name)):
            raise SpecError(f"{name}(...) takes no arguments by name: '{_source(node)}'")
    raise SpecError(f"{describe(node)} is not allowed in an expression: '{_source(node)}'")


def _source(node: ast.AST) -> str:
    return shortened(ast.unparse(node))


def _binary(node: ast.BinOp, left: Any, right: Any) -> Any:
    numbers = all(isinstance(x, int | float) for x in (left, right))
    joins = isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, list)
    if not numbers and not joins:
        given = shortened(f"{left!r} and {right!r}")
        raise SpecError(f"'{_source(node)}': cannot compute with {given}")
    if isinstance(node.op, ast.Pow) and abs(right) > _MAX_POWER:
        raise SpecError(f"'{_source(node)}': an exponent above {_MAX_POWER} is too large")
    value = _BINARY[type(node.op)](left, right)
    if isinstance(value, complex):
        raise SpecError(f"'{_source(node)}' is no real number")
    if any(isinstance(x, int) and abs(x) > _MAX_INTEGER for x in (left, right, value)):
        raise SpecError(f"'{_source(node)}': the numbers grow too large")
    return value


def _item(node: ast.Subscript, items: Any, index: Any) -> Any:
    """`items[index]`. Counting from the end is refused: `[i - 1]` of layer 0 is a mistake."""
    if not isinstance(items, list) or type(index) is not int:
        given = shortened(f"{items!r} and {index!r}")
        raise SpecError(f"'{_source(node)}': only a list has items, by their number (got {given})")
    if not 0 <= index < len(items):
        raise NoSuchItem(f"'{_source(node)}': there is no item {index} in a list of {len(items)}")
    return items[index]


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
