"""Nothing that a YAML file says can run code or end in anything but a value or a `SpecError`.

Random texts, put together from pieces of attacks and of honest expressions, go through every place
where the language reads an expression.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_confs import Workspace

from assembler.errors import SpecError
from assembler.model import expressions
from assembler.model.scope import Callee, Scope
from assembler.model.wiring import parse_wiring

TOUCH = "__import__('pathlib').Path('touched').touch()"
ATTACKS = [
    TOUCH,
    f"eval({TOUCH!r})",
    f"exec({TOUCH!r})",
    "open('touched', 'w')",
    f"(lambda: {TOUCH})()",
    f"[{TOUCH} for _ in [1]]",
    f"f'{{{TOUCH}}}'",
    "().__class__.__base__.__subclasses__()",
    "x.__class__",
    "globals()['__builtins__']",
    "getattr(x, 'data')",
    "breakpoint()",
    "(y := 1)",
    "*x",
    "**x",
    "yield x",
    "await x",
    "9 ** 9 ** 9 ** 9",
    "2 ** 256 ** 2",
    "1 << 99999999",
    "'a' * 999999999",
    "[0] * 999999999",
    "round(7, -999999999)",
    "int('9' + '9')",
    "float('nan')",
    "1e999",
    "-" * 300 + "1",
    "(" * 120 + "1" + ")" * 120,
    "mlp(" * 120 + "x" + ")" * 120,
    "${hf:x}",
    "${oc.env:HOME}",
    "\\N{BULLET}",
    "\0",
    "\x85",
    "é",
    "#",
    ";",
    "\n",
    "'",
    '"',
]
HONEST = ["x", "i", "n", "kinds", "1", "2.5", "0", "-3", "True", "None", "'text'", "a", "b"]
FUNCTIONS = [*expressions.FUNCTIONS, "mlp", "softcap", "layers", "type", "vars"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "@", "<", "==", "in", "is", "and", "or", "|", ","]


def _texts(count: int, seed: int) -> Iterator[str]:
    """Random texts: some of them valid expressions, most of them not."""
    rng = random.Random(seed)

    def piece(depth: int) -> str:
        kind = rng.random()
        if depth == 0 or kind < 0.3:
            return rng.choice(HONEST if rng.random() < 0.7 else ATTACKS)
        if kind < 0.6:
            return f"{piece(depth - 1)} {rng.choice(OPERATORS)} {piece(depth - 1)}"
        if kind < 0.8:
            args = ", ".join(piece(depth - 1) for _ in range(rng.randrange(3)))
            return f"{rng.choice(FUNCTIONS)}({args})"
        if kind < 0.9:
            return f"({piece(depth - 1)})"
        return f"{piece(depth - 1)} if {piece(depth - 1)} else {piece(depth - 1)}"

    for _ in range(count):
        text = piece(rng.randrange(4))
        if rng.random() < 0.15:  # cut somewhere, to leave things open
            text = text[: rng.randrange(len(text) + 1)]
        yield text


@pytest.fixture(autouse=True)
def _nothing_is_touched(ws: Workspace) -> Iterator[None]:
    yield
    assert not Path("touched").exists()


def _value(name: str) -> Any:
    known = {"x": 3, "i": 2, "n": 1.5, "kinds": ["a", "b"], "a": "a", "b": None}
    if name not in known:
        raise SpecError(f"unknown name '{name}'")
    return known[name]


def test_expressions() -> None:
    values = 0
    for text in _texts(3000, seed=0):
        try:
            value = expressions.evaluate(expressions.parse(text), _value)
        except SpecError as error:
            assert len(str(error)) < 700
        else:
            values += 1
            assert isinstance(value, int | float | str | list | None)
            assert not isinstance(value, int) or abs(value) <= 2**512
    assert values > 300, "the texts are so wrong that nothing is tried"


def test_equations() -> None:
    blocks = {"mlp": Callee(1, False, "f.yaml:1")}
    scope = Scope(("x",), ("x",), blocks, ("i", "n"))
    parsed = 0
    for text in _texts(3000, seed=1):
        line = text if "=" in text else f"x = x + mlp({text})"
        try:
            parsed += len(parse_wiring([line], ["f.yaml:2"], scope))
        except SpecError as error:
            assert len(str(error)) < 700
    assert parsed > 50


def test_equations_that_are_compiled(ws: Workspace) -> None:
    built = 0
    for text in _texts(150, seed=2):
        line = json.dumps(f"x = x + ({text}) * mlp(mlp_norm(x))", ensure_ascii=False)
        try:
            spec = ws.base(("x = x + mlp(mlp_norm(x))", line), config={"x": 2})
            built += ws.build(spec) is not None
        except SpecError:
            pass
    assert built > 10


def test_rules_of_kinds(ws: Workspace) -> None:
    read = 0
    for text in _texts(200, seed=3):
        rule = json.dumps(f"a if {text} else b", ensure_ascii=False)
        try:
            layers = f"count: 2\n  kinds: {rule}\n  variants: {{a: {{}}, b: {{}}}}"
            read += set(ws.base(("count: 2", layers)).layer_kinds) <= {"a", "b"}
        except SpecError:
            pass
    assert read > 10


def test_interpolations(ws: Workspace) -> None:
    read = 0
    config = {"x": 3, "i": 2, "kinds": ["a"]}
    for text in _texts(80, seed=4):
        inner = text.replace("'", "\\'")
        for template in (f"${{calc:'{inner}'}}", f"${{hf:{text}}}", text):
            value = json.dumps(template, ensure_ascii=False)
            try:
                spec = ws.base(("heads: 2", f"heads: 2, window: {value}"), config=config)
            except SpecError:
                continue
            window = spec.kinds["layer"].blocks["attn"].window
            read += window is None or math.isfinite(window)
    assert read > 20


@pytest.mark.parametrize(
    "text", ["a b", "x);import os", "a.b", "a\nb", "", "0", "é", "__init__", "1a", "a-b", "lambda"]
)
def test_names(ws: Workspace, text: str) -> None:
    """Names of blocks, streams and kinds become names in generated code."""
    name = json.dumps(text)
    for change in (
        ("mlp: {block: Feed, size: 16}", f"{name}: {{block: Feed, size: 16}}"),
        ("count: 2", f"count: 2\n  streams: [{name}]"),
        ("lm_head: {block: Head}", f"{name}: {{block: Head}}"),
    ):
        with pytest.raises(SpecError):
            ws.build(ws.base(change))
    layers = f"count: 2\n  kinds: [{name}, {name}]\n  variants: {{{name}: {{}}}}"
    assert ws.build(ws.base(("count: 2", layers))).spec.layer_kinds == (text, text)
